"""Bad rows are named errors with file and row, once, and only where a window holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.datasets.errors import BadGroup, CorruptFile, DataChanged, DataError, LabelOutOfRange, SchemaMismatch
from app.datasets.schema import Features
from app.datasets.split import WindowRun
from tests.worker.stream.factory import arrow_features, make_dataset, make_plan, write
from worker.stream.errors import NonFinite
from worker.stream.stream import Stream

torch.set_num_threads(1)

ROWS, WINDOW, SHAPE = 40, 4, (2, 3)
ALL = WindowRun(0, WINDOW - 1, ROWS - WINDOW + 1)


def values() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(0).standard_normal((ROWS, 6))


def stream(
    folder: Path,
    columns: dict[str, Any],
    layout: Any = "list",
    *,
    dtype: str = "float32",
    runs: tuple[WindowRun, ...] = (ALL,),
    labels: Any = None,
    groups: tuple[str, ...] = ("",),
    **options: Any,
) -> Stream:
    """Stream two files of 25 and 15 rows that hold these columns."""
    table = pa.table(
        {
            "timestamp": pa.array(np.arange(ROWS)),
            **columns,
            "label": pa.array([0] * ROWS if labels is None else labels),
        }
    )
    files = [
        write(folder / "first.parquet", table.slice(0, 25), 10, **options),
        write(folder / "second.parquet", table.slice(25), 10, **options),
    ]
    names = tuple(f"f{i}" for i in range(6)) if layout == "columns" else ("features",)
    group = "symbol" if "symbol" in columns else None
    dataset = make_dataset(files, Features(layout, names, dtype, SHAPE), group)
    return Stream(dataset, make_plan(runs, WINDOW, 1, 3, groups), "train", verify_checksums=True)


def error_of(found: Stream, kind: type[DataError]) -> str:
    with pytest.raises(kind) as caught:
        list(found.batches(5))
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", ["binary", "list", "columns"])
def test_a_non_finite_feature_is_named_with_file_row_and_element(
    tmp_path: Path, layout: Any, bad: float
) -> None:
    features = values().astype(np.float32)
    features[28, 4] = bad
    message = error_of(stream(tmp_path, arrow_features(features, layout), layout), NonFinite)
    assert message.startswith("second.parquet, row 3 ")
    assert ("'f4'" if layout == "columns" else "element [1, 1]") in message
    assert NonFinite.code == "non_finite"


def test_a_number_beyond_float32_is_not_finite(tmp_path: Path) -> None:
    features = values()
    features[7, 0] = 1e300
    columns = arrow_features(features, "list")
    assert "first.parquet, row 7 " in error_of(stream(tmp_path, columns, dtype="float64"), NonFinite)


def test_large_finite_features_pass_though_their_sum_overflows(tmp_path: Path) -> None:
    features = np.full((ROWS, 6), 3e38, np.float32)
    assert len(list(stream(tmp_path, arrow_features(features, "list")).batches(5))) == 8


def test_rows_that_no_window_holds_may_be_bad(tmp_path: Path) -> None:
    features = values().astype(np.float32)
    features[0] = np.nan
    labels = [9] + [0] * (ROWS - 1)
    runs = (WindowRun(0, WINDOW, ROWS - WINDOW),)
    found = stream(tmp_path, arrow_features(features, "list"), runs=runs, labels=labels)
    assert sum(len(b) for b in found.batches(5)) == ROWS - WINDOW


def test_bad_rows_of_a_group_are_named_too(tmp_path: Path) -> None:
    features = values().astype(np.float32)
    features[30, 0] = np.nan
    columns = arrow_features(features, "list") | {"symbol": pa.array(["a", "b"] * 20)}
    runs = (WindowRun(0, 3, 17), WindowRun(1, 3, 17))
    found = stream(tmp_path, columns, runs=runs, groups=("a", "b"))
    assert error_of(found, NonFinite).startswith("second.parquet, row 5 ")


def test_a_group_outside_the_plan_is_named(tmp_path: Path) -> None:
    columns = arrow_features(values().astype(np.float32), "list")
    columns["symbol"] = pa.array(["a"] * 33 + [None] + ["a"] * 6)
    assert error_of(stream(tmp_path, columns, groups=("a",)), BadGroup).startswith("second.parquet, row 8 ")


@pytest.mark.parametrize(("label", "shown"), [(3, "is 3"), (-2, "is -2"), (None, "is missing")])
def test_a_label_outside_the_classes_is_named(tmp_path: Path, label: int | None, shown: str) -> None:
    labels = [0] * 12 + [label] + [0] * (ROWS - 13)
    columns = arrow_features(values().astype(np.float32), "list")
    message = error_of(stream(tmp_path, columns, labels=labels), LabelOutOfRange)
    assert message.startswith("first.parquet, row 12 ")
    assert shown in message


def test_nulls_and_wrong_lengths_are_named(tmp_path: Path) -> None:
    lists = [[1.0] * 6 for _ in range(ROWS)]
    for bad, expected in (
        (None, "is null"),
        ([1.0, None, 1.0, 1.0, 1.0, 1.0], "element 1 is null"),
        ([1.0] * 5, "has 5 elements, expected 6"),
    ):
        column = pa.array([*lists[:26], bad, *lists[27:]], pa.list_(pa.float32()))
        message = error_of(stream(tmp_path, {"features": column}), SchemaMismatch)
        assert message.startswith("second.parquet, row 1 ")
        assert expected in message


def test_a_null_in_a_flat_column_or_a_binary_one_is_named(tmp_path: Path) -> None:
    flat = arrow_features(values().astype(np.float32), "columns")
    flat["f2"] = pa.array([1.0] * 11 + [None] + [1.0] * (ROWS - 12))
    assert "row 11 " in error_of(stream(tmp_path, flat, "columns"), SchemaMismatch)
    binary = pa.array([b"\0" * 24] * 11 + [None] + [b"\0" * 24] * (ROWS - 12), pa.binary(24))
    assert "row 11 " in error_of(stream(tmp_path, {"features": binary}, "binary"), SchemaMismatch)


def test_a_binary_column_of_another_width_says_what_was_expected(tmp_path: Path) -> None:
    binary = pa.array([b"\0" * 20] * ROWS, pa.binary(20))
    message = error_of(stream(tmp_path, {"features": binary}, "binary"), SchemaMismatch)
    assert "fixed_size_binary[20]" in message
    assert "fixed_size_binary[24]" in message


def test_lists_that_unpack_to_far_more_are_refused_before_decoding(tmp_path: Path) -> None:
    lists = pa.array([[0.0] * 6] * (ROWS - 1) + [[0.0] * 100_000], pa.list_(pa.float32()))
    assert "row group" in error_of(stream(tmp_path, {"features": lists}), SchemaMismatch)


def test_a_file_that_is_gone_or_has_other_rows_changed(tmp_path: Path) -> None:
    columns = arrow_features(values().astype(np.float32), "list")
    found = stream(tmp_path, columns)
    other = pq.read_table(tmp_path / "second.parquet").slice(1)
    pq.write_table(other, tmp_path / "second.parquet")
    assert error_of(found, DataChanged).startswith("second.parquet ")
    (tmp_path / "first.parquet").unlink()
    assert error_of(found, DataChanged).startswith("first.parquet ")


def rot(path: Path, content: bytes) -> None:
    """Change a file as a failing disk does: its times stay."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_byte_is_found_by_its_checksum_in_the_first_pass_only(tmp_path: Path) -> None:
    columns = arrow_features(values().astype(np.float32), "binary")
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    found = stream(tmp_path, columns, "binary", **options)
    assert len(list(found.batches(40))) == 1
    path = tmp_path / "second.parquet"
    content, needle = bytearray(path.read_bytes()), values().astype(np.float32)[30].tobytes()
    content[content.index(needle)] ^= 1
    rot(path, bytes(content))
    assert len(list(found.batches(40))) == 1
    again = stream(tmp_path, columns, "binary", **options)
    rot(path, bytes(content))
    assert "second.parquet" in error_of(again, CorruptFile)
