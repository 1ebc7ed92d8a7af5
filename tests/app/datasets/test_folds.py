"""Walk-forward folds against a plain split, and that none of them leaks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.datasets.errors import DataError, EmptySplit, TooManyFolds
from app.datasets.folds import walk_forward
from app.datasets.schema import open_dataset
from app.datasets.split import PartPlan, SplitPlan
from app.jobs.config import DataConfig
from tests.app.datasets import reference
from tests.app.datasets.make import SECOND, START_S, Case, cases, table, write

PROPERTY = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
MODES = st.sampled_from(["expanding", "rolling"])


def folds_of(case: Case, folds: int, mode: Any, train: float) -> tuple[SplitPlan, ...] | DataError:
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder))
        dataset = open_dataset(Path(folder), case.config)
        try:
            return walk_forward(dataset, case.config, folds=folds, mode=mode, train=train)
        except DataError as error:
            return error


def windows(plan: SplitPlan, part: PartPlan) -> set[tuple[str, int]]:
    return {
        (plan.groups[run.group], run.first + step * plan.stride)
        for run in part.runs
        for step in range(run.count)
    }


@PROPERTY
@given(cases(), st.integers(1, 4), MODES, st.sampled_from([0.3, 0.5, 0.71]))
def test_no_fold_leaks_and_together_they_validate_everything_once(
    case: Case, folds: int, mode: Literal["expanding", "rolling"], train: float
) -> None:
    plans = folds_of(case, folds, mode, train)
    if isinstance(plans, DataError):
        assert plans.code in ("empty_split", "too_many_folds")
        return
    data = case.config
    rows = reference.in_order(case.files)
    times = np.sort([row.time for row in rows])
    series = {str(group): one for group, one in reference.by_group(rows).items()}
    assert len(plans) == folds
    seen: set[tuple[str, int]] = set()
    for fold, plan in enumerate(plans):
        val_from, val_to = plan.cuts_ns
        assert val_from is not None
        assert val_to == (plans[fold + 1].cuts_ns[0] if fold + 1 < folds else None)
        last = int(times[-1]) + 1 if val_to is None else val_to
        assert plan.val.rows == int(((times >= val_from) & (times < last)).sum())
        num_before = int((times < val_from).sum())
        if mode == "expanding":
            assert plan.train.rows == num_before
            train_from = 0
        else:
            assert plan.train.rows <= num_before
            train_from = int(times[num_before - plan.train.rows])
        for group, i in windows(plan, plan.train):
            window = series[group][i - data.window + 1 : i + 1]
            assert all(train_from <= row.time < val_from for row in window)
            assert reference.label_end(window[-1], data) < val_from
        for group, i in windows(plan, plan.val):
            window = series[group][i - data.window + 1 : i + 1]
            clear = val_from + reference.exact_ns(data.embargo_s)
            assert all(clear <= row.time < last for row in window)
            if val_to is not None:
                assert reference.label_end(window[-1], data) < val_to
        assert not windows(plan, plan.val) & seen
        seen |= windows(plan, plan.val)
        for part in plan.parts.values():
            candidates = part.windows + sum(part.dropped.values())
            begin, end = (train_from, val_from) if part is plan.train else (val_from, last)
            assert candidates == sum(
                begin <= one[i].time < end
                for one in series.values()
                for i in range(data.window - 1, len(one), data.stride)
            )
    first = plans[0].cuts_ns[0]
    assert first is not None
    assert sum(plan.val.rows for plan in plans) == int((times >= first).sum())


def plans_of(root: Path, **options: Any) -> tuple[SplitPlan, ...]:
    data = DataConfig.model_validate({"path": "a.parquet", "window": 4, **options.pop("data", {})})
    return walk_forward(open_dataset(root, data), data, **options)


def test_validation_parts_are_equal_and_training_expands(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    plans = plans_of(tmp_path, folds=5)
    assert [plan.val.rows for plan in plans] == [10] * 5
    assert [plan.train.rows for plan in plans] == [50, 60, 70, 80, 90]
    assert [plan.cuts_ns[0] for plan in plans] == [(START_S + row) * SECOND for row in range(50, 100, 10)]
    assert plans[-1].cuts_ns[1] is None
    assert all(plan.test is None for plan in plans)


def test_rolling_training_keeps_its_size(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    plans = plans_of(tmp_path, folds=4, mode="rolling", train=0.2)
    assert [plan.train.rows for plan in plans] == [20] * 4
    assert [plan.train.start_ns for plan in plans] == [(START_S + row) * SECOND for row in (0, 20, 40, 60)]


def test_one_fold_is_the_split_of_the_same_share(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    (plan,) = plans_of(tmp_path, folds=1, train=0.8)
    assert (plan.train.rows, plan.val.rows) == (80, 20)


def test_a_fold_without_windows_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    with pytest.raises(EmptySplit, match=r"fold 1 of 20: val split has 0 windows"):
        plans_of(tmp_path, folds=20)


def test_more_folds_than_instants_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, step_s=0))
    with pytest.raises(TooManyFolds):
        plans_of(tmp_path, folds=2)
