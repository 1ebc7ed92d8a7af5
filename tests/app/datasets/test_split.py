"""The split plan against a plain one, its leaks, and everything it refuses."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from app.datasets import cuts, parquet
from app.datasets.cuts import Survey
from app.datasets.errors import DataError, EmptySplit, NoClassWeight, PreflightTimeout, WrongClassWeights
from app.datasets.schema import open_dataset
from app.datasets.split import PartPlan, SplitPlan, plan_split
from app.jobs.config import DataConfig
from tests.app.datasets import reference
from tests.app.datasets.make import SECOND, START_S, Case, cases, table, write

PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def planned(case: Case) -> Iterator[SplitPlan | DataError]:
    """Plan a case with batches, spans and gathered values so small that every border is crossed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch.object(parquet, "BATCH_ROWS", case.batch_rows))
        stack.enter_context(patch.object(cuts, "SPAN_ROWS", case.batch_rows * 2))
        stack.enter_context(patch.object(cuts, "GATHER_VALUES", case.batch_rows))
        stack.enter_context(patch.object(cuts, "BINS", 3))
        case.write(Path(folder))
        dataset = open_dataset(Path(folder), case.config)
        try:
            yield plan_split(dataset, case.config)
        except DataError as error:
            yield error


def windows(plan: SplitPlan, part: PartPlan) -> list[tuple[str, int]]:
    return [
        (plan.groups[run.group], run.first + step * plan.stride)
        for run in part.runs
        for step in range(run.count)
    ]


@PROPERTY
@given(cases())
def test_every_window_row_and_reason_equals_the_plain_split(case: Case) -> None:
    rows = reference.in_order(case.files)
    expected = reference.plan(rows, case.config)
    with planned(case) as plan:
        empty = [name for name, part in expected.items() if not part.used]
        if empty:
            assert isinstance(plan, EmptySplit)
            assert [problem.message.split()[0] for problem in plan.problems] == empty
            return
        assert isinstance(plan, SplitPlan), plan
    values = sorted({row.group for row in rows}, key=lambda value: (str(type(value)), value))
    assert plan.groups == tuple(str(value) for value in values)
    assert list(plan.parts) == list(expected)
    assert plan.num_classes == max(2, 1 + max(row.label for row in rows))
    for name, part in plan.parts.items():
        plain = expected[name]
        order = [(values.index(group), i) for group, i in plain.used]
        assert windows(plan, part) == [(str(values[group]), i) for group, i in sorted(order)]
        for run, after in pairwise(part.runs):  # no two runs that could be one
            assert run.group != after.group or run.first + run.count * plan.stride < after.first
        assert part.rows == plain.rows
        assert part.windows == len(plain.used)
        assert part.dropped == plain.dropped
        assert part.class_counts == tuple(plain.labels.count(k) for k in range(plan.num_classes))
        assert (part.start_ns, part.end_ns) == (min(plain.times), max(plain.times))
    assert sum(part.rows for part in plan.parts.values()) == len(rows)


@PROPERTY
@given(cases())
def test_no_window_knows_the_next_part_and_none_touches_the_embargo(case: Case) -> None:
    data, series = case.config, reference.by_group(reference.in_order(case.files))
    with planned(case) as plan:
        if not isinstance(plan, SplitPlan):
            return
    by_name = {str(group): rows for group, rows in series.items()}
    begins = [None, *plan.cuts_ns][: len(plan.parts)]
    for (_, part), begin, end in zip(plan.parts.items(), begins, [*begins[1:], None], strict=True):
        for group, i in windows(plan, part):
            window = by_name[group][i - data.window + 1 : i + 1]
            assert len(window) == data.window
            if end is not None:
                assert all(row.time < end for row in window)
                assert reference.label_end(window[-1], data) < end
            if begin is not None:
                assert all(row.time >= begin + reference.exact_ns(data.embargo_s) for row in window)


@pytest.mark.parametrize("gather", [1, 7, 10**6], ids=["narrowed", "mixed", "gathered"])
def test_a_rank_is_found_among_interleaved_files(tmp_path: Path, gather: int) -> None:
    rng = np.random.default_rng(3)
    times = [np.sort(rng.integers(0, 10**6, 500)) + START_S * 1000 for _ in range(3)]
    for index, chunk in enumerate(times):
        rows = table(500, timestamp=pa.array(chunk, pa.timestamp("ms")), group=pa.array([index] * 500))
        write(tmp_path, f"set/{index}.parquet", rows, row_group_size=50)
    ordered = np.sort(np.concatenate(times)) * 10**6
    with patch.object(cuts, "SPAN_ROWS", 60), patch.object(cuts, "GATHER_VALUES", gather):
        survey = Survey(open_dataset(tmp_path, DataConfig(path="set", group="group")))
        for rank in (0, 1, 700, 1498, 1499):
            assert survey.value_at(rank) == ordered[rank]
        assert survey.next_after(int(ordered[-1])) is None
        assert survey.next_after(int(ordered[4])) == ordered[ordered > ordered[4]][0]


def test_fractions_are_decimals_as_written(tmp_path: Path) -> None:
    # 0.29 x 100 is 28.999999999999996 in binary.
    write(tmp_path, "a.parquet", table(100))
    plan = plan_of(tmp_path, window=1, split={"train": 0.29, "val": 0.71, "test": 0.0})
    assert (plan.train.rows, plan.val.rows) == (29, 71)


def test_a_cut_never_parts_equal_times(tmp_path: Path) -> None:
    times = pa.array([START_S + i // 30 for i in range(100)], pa.timestamp("s"))
    write(tmp_path, "a.parquet", table(100, timestamp=times))
    plan = plan_of(tmp_path, window=1, split={"train": 0.5, "val": 0.5, "test": 0.0})
    assert (plan.train.rows, plan.val.rows) == (60, 40)
    assert plan.cuts_ns == ((START_S + 2) * SECOND, None)


def test_a_window_is_dropped_for_the_first_reason_that_holds(tmp_path: Path) -> None:
    # 60 train, 20 val, 20 test rows a second apart; between rows 61 and 62 a hole of 10 s.
    seconds = START_S + np.arange(100) + 9 * (np.arange(100) > 61)
    ends = seconds + np.where(np.arange(100) == 63, 1000, 0)
    times, known = (pa.array(column, pa.timestamp("s")) for column in (seconds, ends))
    write(tmp_path, "a.parquet", table(100, timestamp=times, label_end=known))
    split = {"train": 0.6, "val": 0.2, "test": 0.2}
    plan = plan_of(tmp_path, window=4, split=split, max_gap_s=5.0, embargo_s=1.0)
    # Windows ending at 60 to 63 touch the embargo, at 62 to 64 the hole; the label of 63 knows the test part.
    assert plan.val.dropped == {"purged": 1, "embargoed": 3, "gap": 1}
    assert plan.val.windows == 15


def test_the_later_of_label_end_and_horizon_purges(tmp_path: Path) -> None:
    ends = pa.array((START_S + np.arange(100) + 5) * SECOND, pa.timestamp("ns", tz="UTC"))
    write(tmp_path, "a.parquet", table(100, label_end=ends))
    purged = {
        horizon: plan_of(tmp_path, window=1, horizon_s=horizon).train.dropped["purged"]
        for horizon in (0.0, 2.0, 9.0)
    }
    assert purged == {0.0: 5, 2.0: 5, 9.0: 9}


def test_seconds_finer_than_a_nanosecond_are_exact(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.parquet",
        table(100, timestamp=pa.array(START_S * SECOND + np.arange(100), pa.timestamp("ns"))),
    )
    plan = plan_of(tmp_path, window=1, horizon_s=1.5e-9, embargo_s=1.5e-9)
    assert (plan.train.dropped["purged"], plan.val.dropped["embargoed"]) == (1, 2)


def test_four_unnamed_classes_get_the_four_names(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    assert plan_of(tmp_path).classes == ("Neutro", "Stop", "Long", "SuperLong")
    write(tmp_path, "a.parquet", table(100, label=pa.array(np.arange(100) % 3)))
    assert plan_of(tmp_path).classes == ("0", "1", "2")


def test_256_groups_are_planned_and_257_are_refused(tmp_path: Path) -> None:
    for num_groups in (256, 257):
        rows = table(num_groups * 20, group=pa.array([i % num_groups for i in range(num_groups * 20)]))
        write(tmp_path, f"{num_groups}.parquet", rows)
    plan = plan_of(tmp_path, path="256.parquet", window=2, group="group")
    assert len(plan.groups) == 256
    assert refusal(tmp_path, path="257.parquet", window=2, group="group").code == "bad_group"


def test_a_part_without_a_window_says_how_many_rows_it_has_and_what_helps(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(1900))
    error = refusal(tmp_path, window=512)
    assert error.message == (
        "val split has 0 windows: 380 rows after the cut, T=512 needs 512. Lower window or split.train."
    )
    assert error.problems[0].pointer == "/data/split"


def test_a_part_whose_windows_are_all_dropped_says_why(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    error = refusal(tmp_path, window=5, embargo_s=1000.0)
    assert error.code == "empty_split"
    assert "20 embargoed" in error.message


def test_times_beyond_the_data_are_an_empty_split(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    error = refusal(tmp_path, split={"val_from": datetime(2030, 1, 1, tzinfo=UTC)})
    assert error.message.startswith("val split has 0 windows: 0 rows after the cut")


def test_a_validation_split_without_weight_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([1] * 40 + [0] * 60)))
    data = config(window=4)
    dataset = open_dataset(tmp_path, data)
    with pytest.raises(NoClassWeight, match="val split's total class weight is 0"):
        plan_split(dataset, data, class_weights=[0.0, 1.0])
    with pytest.raises(WrongClassWeights, match="3 entries"):
        plan_split(dataset, data, class_weights=[0.0, 1.0, 2.0])
    assert plan_split(dataset, data, class_weights=[1.0, 0.5]).val.windows


def test_a_class_without_train_windows_is_a_warning_with_the_effect_of_its_weight(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([0, 1] * 45 + [2] * 10)))
    data = config(window=4)
    plan = plan_split(open_dataset(tmp_path, data), data, class_weights=[1.0, 1.0, 20.0])
    assert plan.warnings[0][0] == "class_missing_from_train"
    assert "weight 20 has no effect" in plan.warnings[0][1]


def test_one_class_only_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([0] * 100)))
    assert [code for code, _ in plan_of(tmp_path).warnings] == ["single_class"]


def warned(root: Path, labels: list[int], **fields: Any) -> dict[str, str]:
    write(root, "a.parquet", table(len(labels), label=pa.array(labels)))
    return dict(plan_of(root, **fields).warnings)


def test_a_class_without_validation_windows_is_a_warning(tmp_path: Path) -> None:
    found = warned(tmp_path, [0, 1, 2, 3] * 20 + [0, 2] * 10)
    assert found.keys() == {"class_missing_from_validation"}
    assert "1 (Stop), 3 (SuperLong), validation has none" in found["class_missing_from_validation"]


def test_classes_are_missed_after_purge_and_embargo(tmp_path: Path) -> None:
    # The last rows of training alone are of class 1, and all of them are purged; so it is not missed.
    labels = [0] * 75 + [1] * 5 + [0, 2] * 10
    assert "class_missing_from_validation" in warned(tmp_path, labels)
    assert warned(tmp_path, labels, horizon_s=5).keys() == {"single_class"}
    # Class 2 is in the first validation rows alone, where no window ends.
    found = warned(tmp_path, [0, 1, 2] * 26 + [0, 1] + [2] * 5 + [0, 1] * 8)
    assert "2 (2), validation has none" in found["class_missing_from_validation"]


def test_validation_of_one_class_is_a_warning(tmp_path: Path) -> None:
    found = warned(tmp_path, [0, 1] * 40 + [1] * 20)
    assert found.keys() == {"single_class_validation", "class_missing_from_validation"}
    assert "Every validation window is of class 1 (1)" in found["single_class_validation"]


def test_a_test_split_is_warned_of_alike(tmp_path: Path) -> None:
    split = {"train": 0.6, "val": 0.2, "test": 0.2}
    found = warned(tmp_path, [0, 1, 2] * 26 + [0, 1] + [1] * 20, split=split)
    assert found.keys() == {"single_class_test", "class_missing_from_test"}


@pytest.mark.parametrize(
    ("num_labels", "words"),
    [
        (2, "there would be 3 classes, and the default class weights, which are those of four classes"),
        (3, "there would be 4 classes, and they would get the default names and class weights of four"),
        (4, "there would be 5 classes, and the default class weights, which are those of four classes"),
    ],
)
def test_labels_that_start_at_one_are_a_warning(tmp_path: Path, num_labels: int, words: str) -> None:
    found = warned(tmp_path, [1 + k % num_labels for k in range(100)])
    assert "labels_start_at_one" in found
    assert words in found["labels_start_at_one"]
    assert "Store label - 1" in found["labels_start_at_one"]


@pytest.mark.parametrize(
    ("labels", "fields"),
    [([0, 1, 2] * 34, {}), ([1, 2] * 50, {"classes": ["down", "flat", "up"]}), ([1] * 100, {})],
    ids=["from_zero", "named", "one_label"],
)
def test_labels_that_may_be_meant_so_are_no_warning(
    tmp_path: Path, labels: list[int], fields: dict[str, Any]
) -> None:
    assert "labels_start_at_one" not in warned(tmp_path, labels, **fields)


def test_as_many_names_as_labels_that_start_at_one_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([1, 2] * 50)))
    error = refusal(tmp_path, classes=["down", "up"])
    assert error.code == "label_out_of_range"
    assert error.hint == "Labels seem to start at 1: store label - 1, so that the classes are 0..1."


def test_a_label_end_before_its_row_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label_end=pa.array([START_S] * 100, pa.timestamp("s"))))
    assert "label_end_before_row" in [code for code, _ in plan_of(tmp_path).warnings]


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "null": (pa.array([0, 1, None] + [2, 3] * 48 + [0], pa.int8()), "row 2 is missing"),
    "negative": (pa.array([0, 1, -1] + [2, 3] * 48 + [0], pa.int8()), "row 2 is -1"),
    "too large": (pa.array([0, 1, 2] + [2, 3] * 48 + [999], pa.int64()), "row 99 is 999"),
    "beyond 2^63": (pa.array([0, 1, 2**64 - 1] + [2, 3] * 48 + [0], pa.uint64()), "row 2 is -1"),
}


@pytest.mark.parametrize(("labels", "where"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_bad_label_is_named_with_its_place_and_the_histogram(
    tmp_path: Path, labels: Any, where: str
) -> None:
    write(tmp_path, "a.parquet", table(100, label=labels))
    error = refusal(tmp_path)
    assert error.code == "label_out_of_range"
    assert where in error.message
    assert "2: 48" in error.message or "2: 49" in error.message
    assert error.problems[0].pointer == "/data/label"


def test_a_label_beyond_the_named_classes_is_out_of_range(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    error = refusal(tmp_path, classes=["down", "up"])
    assert "0..1; a.parquet, row 2 is 2" in error.message
    assert "0: 25, 1: 25, 2: 25, 3: 25" in error.message


def test_a_row_back_in_time_is_named_with_both_values(tmp_path: Path) -> None:
    times = (START_S + np.arange(100)) * SECOND
    times[57] -= 5 * SECOND
    write(tmp_path, "a.parquet", table(100, timestamp=pa.array(times, pa.timestamp("ns"))), row_group_size=57)
    error = refusal(tmp_path)
    assert error.code == "not_chronological"
    assert "a.parquet, row 57: 2023-11-14T22:14:12Z comes after 2023-11-14T22:14:16Z" in error.message


def test_files_that_overlap_are_both_named(tmp_path: Path) -> None:
    write(tmp_path, "set/late.parquet", table(100))
    write(tmp_path, "set/early.parquet", table(100, start_s=START_S - 50))
    error = refusal(tmp_path, path="set")
    assert error.code == "files_overlap"
    assert "set/early.parquet ends at 2023-11-14T22:14:09Z" in error.message
    assert "set/late.parquet" in error.message


def test_overlap_is_judged_inside_a_group(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"set/{name}.parquet", table(100, group=pa.array([name] * 100)))
    assert plan_of(tmp_path, path="set", group="group").train.rows == 160
    write(tmp_path, "set/c.parquet", table(100, start_s=START_S + 50, group=pa.array(["a"] * 100)))
    assert refusal(tmp_path, path="set", group="group").code == "files_overlap"


def test_files_are_ordered_as_their_groups_demand(tmp_path: Path) -> None:
    def rows(group: str, start: int) -> pa.Table:
        return table(50, start_s=START_S + start, group=pa.array([group] * 50))

    # By first time a.parquet comes first, but its rows of y follow those of b.parquet.
    write(tmp_path, "set/a.parquet", pa.concat_tables([rows("x", 0), rows("y", 500)]))
    write(tmp_path, "set/b.parquet", rows("y", 100))
    data = config(path="set", group="group")
    assert [file.name for file in open_dataset(tmp_path, data).files] == ["set/b.parquet", "set/a.parquet"]
    plan = plan_split(open_dataset(tmp_path, data), data)
    assert plan.train.rows == 120
    assert sum(part.windows + sum(part.dropped.values()) for part in plan.parts.values()) == 41 + 91


def test_groups_that_demand_opposite_orders_of_two_files_are_refused(tmp_path: Path) -> None:
    def rows(group: str, start: int) -> pa.Table:
        return table(50, start_s=START_S + start, group=pa.array([group] * 50))

    write(tmp_path, "set/a.parquet", pa.concat_tables([rows("x", 0), rows("y", 500)]))
    write(tmp_path, "set/b.parquet", pa.concat_tables([rows("y", 100), rows("x", 600)]))
    assert refusal(tmp_path, path="set", group="group").code == "files_overlap"


def test_every_kind_of_fault_in_the_rows_is_told_at_once(tmp_path: Path) -> None:
    times = (START_S - np.arange(100)) * SECOND
    rows = table(100, timestamp=pa.array(times, pa.timestamp("ns")), label=pa.array([0, -7] * 50))
    write(tmp_path, "a.parquet", rows)
    codes = {problem.code for problem in refusal(tmp_path).problems}
    assert codes == {"not_chronological", "label_out_of_range"}


BAD_TIMES: dict[str, tuple[Any, str]] = {
    "null": (pa.array([None if i == 7 else START_S + i for i in range(100)], pa.timestamp("s")), "row 7"),
    "negative": (pa.array([i - 3 for i in range(100)], pa.timestamp("s")), "before 1970"),
    "year 9999": (pa.array([START_S + i for i in range(99)] + [253402300799], pa.timestamp("s")), "2262"),
    "mixed units": (pa.array([START_S + i for i in range(99)] + [START_S * 10**9]), "looks like ns"),
}


@pytest.mark.parametrize(("times", "words"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_bad_timestamp_is_named(tmp_path: Path, times: Any, words: str) -> None:
    write(tmp_path, "a.parquet", table(100, timestamp=times))
    error = refusal(tmp_path)
    assert error.code == "bad_timestamp"
    assert words in error.message
    assert "a.parquet" in error.message


def test_a_bad_label_end_points_at_its_own_field(tmp_path: Path) -> None:
    ends = pa.array([None if i == 7 else START_S + i for i in range(100)], pa.timestamp("s"))
    write(tmp_path, "a.parquet", table(100, label_end=ends))
    error = refusal(tmp_path)
    assert (error.code, error.problems[0].pointer) == ("bad_timestamp", "/data/label_end")


def test_a_missing_group_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, group=pa.array(["x"] * 40 + [None] + ["x"] * 59)))
    error = refusal(tmp_path, group="group")
    assert error.code == "bad_group"
    assert "row 40" in error.message


def test_a_flipped_byte_is_caught_by_the_page_checksum(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", table(5000), use_dictionary=False, compression="none")
    dataset = open_dataset(tmp_path, config())
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="checksum") as caught:
        plan_split(dataset, config())
    assert caught.value.code == "corrupt_file"
    assert str(tmp_path) not in caught.value.message


def test_a_file_that_is_replaced_meanwhile_is_data_changed(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    dataset = open_dataset(tmp_path, config())
    write(tmp_path, "a.parquet", table(150))
    with pytest.raises(DataError, match="it changed while it was read") as caught:
        plan_split(dataset, config())
    assert caught.value.code == "data_changed"


def test_past_the_deadline_nothing_more_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    with pytest.raises(PreflightTimeout):
        plan_split(open_dataset(tmp_path, config()), config(), deadline=time.monotonic() - 1)


def config(**fields: Any) -> DataConfig:
    return DataConfig.model_validate({"path": "a.parquet", "window": 10, **fields})


def plan_of(root: Path, **fields: Any) -> SplitPlan:
    data = config(**fields)
    return plan_split(open_dataset(root, data), data)


def refusal(root: Path, **fields: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        plan_of(root, **fields)
    return caught.value
