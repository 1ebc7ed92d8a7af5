"""The bad-input matrix, rows 30 to 47, in a job: an attempt ends with the same refusal as the dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.datasets.places import Sources
from app.jobs.config import JobRequest
from tests.app.datasets.bad import ONLY_FEATURES, REFUSED, SMALL_BUDGET, WARNED
from tests.app.datasets.make import table, write
from worker import runner
from worker.assignment import Assignment
from worker.engine.events import Ended, Warned, decode

torch.set_num_threads(1)


class NoOrders:
    stop = None


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def attempt(root: Path, data: dict[str, Any], fingerprint: str | None = None) -> list[Any]:
    """Run an attempt at a job on a dataset, as the worker would had nobody looked at submit."""
    directory = root / "jobs" / "1"
    directory.mkdir(parents=True)
    body = {
        "data": {"path": "set", "window": 5, **data},
        "model": {"name": "mlp", "d_model": 8, "hidden": 8},
        "training": {"epochs": 1, "threads": 1},
    }
    assignment = Assignment(
        job_id="01K00000000000000000000000",
        attempt=1,
        config=JobRequest.model_validate(body).model_dump(mode="json"),
        resolved=None,
        data_fingerprint=fingerprint,
        sources=Sources(root),
        plans=root / ".plans",
        directory=directory,
        log=root / "log.txt",
        plot=root / "plot.png",
        stream_budget=SMALL_BUDGET,
        vram_fraction=1.0,
    )
    events: list[Any] = []
    runner.run(assignment, lambda message: events.append(decode(message)), NoOrders())  # type: ignore[arg-type]
    return events


def refusal(root: Path, data: dict[str, Any], fingerprint: str | None = None) -> Ended:
    ended = attempt(root, data, fingerprint)[-1]
    assert isinstance(ended, Ended)
    assert ended.hint
    assert str(root) not in ended.message
    return ended


@pytest.mark.parametrize(("make", "data", "code", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_dataset_ends_the_job(
    tmp_path: Path, make: Callable[[Path], None], data: dict[str, Any], code: str, words: list[str]
) -> None:
    make(tmp_path)
    ended = refusal(tmp_path, data)
    assert ended.reason == "data_invalid"
    for word in words:
        assert word in f"{ended.message} | {ended.hint}"


@pytest.mark.parametrize(("make", "data", "code", "words"), ONLY_FEATURES.values(), ids=ONLY_FEATURES)
def test_what_only_features_show_ends_the_job_where_they_are_first_read(
    tmp_path: Path, make: Callable[[Path], None], data: dict[str, Any], code: str, words: list[str]
) -> None:
    make(tmp_path)
    ended = refusal(tmp_path, data)
    assert ended.reason == "data_invalid"
    assert "set/bad.parquet" in ended.message
    rows = [word.split("row ")[1].split(":")[0] for word in words if "row " in word]
    assert not rows or f"row {rows[0]}" in ended.message


SEEN_IN_A_JOB = ("32", "42", "44")  # the others are of the features, and no reason to say more than inspect


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [case for name, case in WARNED.items() if name.startswith(SEEN_IN_A_JOB)],
    ids=[name for name in WARNED if name.startswith(SEEN_IN_A_JOB)],
)
def test_what_would_hurt_is_a_warning_of_the_job_once(
    tmp_path: Path, make: Callable[[Path], None], code: str, words: list[str]
) -> None:
    make(tmp_path)
    warned = [event for event in attempt(tmp_path, {}) if isinstance(event, Warned) and event.code == code]
    assert len(warned) == 1
    for word in words:
        assert word in warned[0].message


def test_47_a_file_that_changed_since_submit_ends_the_job(tmp_path: Path) -> None:
    write(tmp_path, "set/a.parquet", table(200))
    assert refusal(tmp_path, {}, "of other files").reason == "data_changed"


def test_47_a_file_that_changes_in_the_epoch_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "set/a.parquet", table(2000))
    building = runner._build

    def then_it_changes(*args: Any) -> Any:
        built = building(*args)
        write(tmp_path, "set/a.parquet", table(2000, a=None))
        return built

    monkeypatch.setattr(runner, "_build", then_it_changes)
    ended = refusal(tmp_path, {})
    assert ended.reason == "data_changed"
    assert "set/a.parquet" in ended.message
