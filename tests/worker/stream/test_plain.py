"""Plain features are read past Arrow, with the same bytes; what is not plain is left to Arrow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.datasets.errors import DataChanged
from app.datasets.schema import Features
from app.datasets.split import WindowRun
from tests.worker.stream.factory import Planted, arrow_features, make_dataset, make_plan, plant, seen, write
from worker.stream import decode, files, memory, reader
from worker.stream.errors import StreamBudgetTooSmall
from worker.stream.memory import Memory
from worker.stream.plain import PlainFile, find_pages, read_struct
from worker.stream.stream import Stream
from worker.stream.tape import Tape

torch.set_num_threads(1)

PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False}
ROWS, ELEMENTS = 700, 24


def values() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((ROWS, ELEMENTS), np.float32)


def read(path: Path, values_NE: Any, *, is_required: bool = False, **options: Any) -> bytes | None:
    """Write a file and read rows 50 .. 249 of its second row group; None when it is not plain."""
    column = arrow_features(values_NE, "binary")["features"]
    schema = pa.schema([pa.field("features", column.type, nullable=not is_required)])
    pq.write_table(pa.table([column], schema=schema), path, row_group_size=300, **PLAIN | options)
    width = values_NE.shape[1] * values_NE.dtype.itemsize
    with pq.ParquetFile(path) as file:
        pages = find_pages(file.metadata, 1, "features", width)
    if pages is None:
        return None
    plain, content = PlainFile(path, width), bytearray(200 * width)
    try:
        if not plain.find(pages, 250):
            return None
        plain.expect(pages, 50, 250)
        assert plain.read_into(memoryview(content), pages, 50, 200)
        return bytes(content)
    finally:
        plain.close()


@pytest.mark.parametrize("is_required", [False, True])
@pytest.mark.parametrize("page_bytes", [200, 3000, 1 << 20])
@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("checksums", [False, True])
def test_rows_over_any_pages_are_the_bytes_written(
    tmp_path: Path, is_required: bool, page_bytes: int, statistics: bool, checksums: bool
) -> None:
    found = read(
        tmp_path / "a.parquet",
        values(),
        is_required=is_required,
        data_page_size=page_bytes,
        write_batch_size=1,
        write_statistics=statistics,
        write_page_checksum=checksums,
    )
    assert found == values()[350:550].tobytes()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": True},
        {"data_page_version": "2.0"},
        {"use_byte_stream_split": True},
    ],
    ids=["compressed", "dictionary", "version 2", "byte stream split"],
)
def test_what_is_not_plain_is_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    assert read(tmp_path / "a.parquet", values(), **options) is None


@pytest.mark.parametrize("width", [1, 96])
def test_pages_with_a_missing_value_are_left_alone(tmp_path: Path, width: int) -> None:
    cells: list[bytes | None] = [b"x" * width] * ROWS
    cells[400] = None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"features": pa.array(cells, pa.binary(width))}), path, **PLAIN)
    with pq.ParquetFile(path) as file:
        pages = find_pages(file.metadata, 0, "features", width)
    assert pages is not None
    plain = PlainFile(path, width)
    assert not plain.find(pages, ROWS)
    plain.close()


def test_a_header_that_is_cut_or_none_is_refused() -> None:
    for content in (b"", b"\x15", b"\x15\x00\x15\x80", b"\x1c" * 40, b"\x19\x00", b"\x05"):
        with pytest.raises(IndexError):
            read_struct(content, 0)


@pytest.mark.parametrize("num_groups", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "float64"])
@pytest.mark.parametrize("row_group_rows", [3, 40, 100])
@pytest.mark.parametrize("budget", [2000, 1 << 20])
def test_later_passes_give_what_the_first_gave(
    tmp_path: Path, num_groups: int, dtype: str, row_group_rows: int, budget: int
) -> None:
    planted = planted_plainly(
        tmp_path, row_group_rows=row_group_rows, dtype=dtype, num_groups=num_groups, num_files=2
    )
    stream = Stream(planted.dataset, planted.plan, "train", budget_bytes=budget)
    for skip in (0, 0, 17, 55):
        assert seen(stream.batches(5, skip=skip)) == planted.expected()[skip:]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_later_passes_in_pieces_of_any_size_give_every_sample_in_order(data: st.DataObject) -> None:
    draw = data.draw
    recipe = {
        "window": draw(st.integers(1, 9), label="window"),
        "stride": draw(st.sampled_from([1, 1, 2, 3, 12]), label="stride"),
        "kept": draw(st.sampled_from([1.0, 0.9, 0.4]), label="kept"),
        "num_files": draw(st.integers(1, 3), label="num_files"),
        "seed": draw(st.integers(0, 1 << 20), label="seed"),
    }
    size = draw(st.sampled_from([1, 2, 3, 5, 15, 64]), label="size")
    piece_bytes = draw(st.sampled_from([1, 100, 300, 1000, 1 << 20]), label="piece_bytes")  # a row is 24
    with tempfile.TemporaryDirectory() as folder, patch.object(files, "PIECE_BYTES", piece_bytes):
        planted = planted_plainly(Path(folder), row_group_rows=40, **recipe)
        expected, stream = planted.expected(), Stream(planted.dataset, planted.plan, "train")
        assert seen(stream.batches(3)) == expected
        skip = draw(st.integers(0, len(expected)), label="skip")
        with patch.object(reader, "decode_features", None):
            held = list(stream.batches(size, skip=skip))  # all at once: their memory is not used again
        assert seen(iter(held)) == expected[skip:]


def test_no_batch_is_copied_where_pieces_meet(tmp_path: Path) -> None:
    with patch.object(files, "PIECE_BYTES", 300):  # twelve rows
        planted = planted_plainly(tmp_path, row_group_rows=100)
        stream = Stream(planted.dataset, planted.plan, "train")
    first = seen(stream.batches(5))
    with patch.object(Tape, "_seam", None):
        assert seen(stream.batches(5)) == first


@pytest.mark.parametrize(("size", "kept"), [(90, 1.0), (200, 1.0), (70, 0.9), (200, 0.9)])
def test_a_batch_of_many_pieces_holds_few_of_them(tmp_path: Path, size: int, kept: float) -> None:
    with patch.object(files, "PIECE_BYTES", 300):  # twelve rows
        planted = planted_plainly(tmp_path, row_group_rows=100, kept=kept)
        stream = Stream(planted.dataset, planted.plan, "train")
    first = seen(stream.batches(size))
    with patch.object(memory, "_map", wraps=memory._map) as mapping:
        assert seen(stream.batches(size)) == first
    assert mapping.call_count <= 3


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    shelf = Memory(1 << 12)
    first = shelf.take()
    place, view = first.ctypes.data, torch.from_numpy(first.view(np.float32)).view(2, -1)[1:]
    del first
    second = shelf.take()
    assert second.ctypes.data != place
    del view
    assert shelf.take().ctypes.data == place


def test_later_passes_do_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = planted_plainly(tmp_path, row_group_rows=40)
    stream = Stream(planted.dataset, planted.plan, "train")
    first = seen(stream.batches(5))
    monkeypatch.delattr("worker.stream.reader.decode_features")
    assert seen(stream.batches(5)) == first
    monkeypatch.delattr("worker.stream.reader.pq")
    assert seen(stream.batches(5)) == first
    assert seen(stream.batches(5, skip=30)) == first[30:]


@pytest.mark.parametrize(("classes", "budget"), [(300, 1 << 20), (3, 500)])
def test_labels_that_are_too_large_or_too_many_to_keep_are_decoded_again(
    tmp_path: Path, classes: int, budget: int
) -> None:
    planted = planted_plainly(tmp_path, row_group_rows=40, classes=classes)
    stream = Stream(planted.dataset, planted.plan, "train", budget_bytes=budget)
    for _ in range(3):
        with patch.object(reader, "decode_labels", wraps=decode.decode_labels) as decoding:
            assert seen(stream.batches(5)) == planted.expected()
        assert decoding.called


@pytest.mark.parametrize("change", ["rewritten", "touched", "cut"])
def test_a_file_that_changes_in_an_epoch_is_named_at_its_end(tmp_path: Path, change: str) -> None:
    planted = planted_plainly(tmp_path, row_group_rows=40)
    path = planted.dataset.files[0].path
    stream = Stream(planted.dataset, planted.plan, "train")
    assert seen(stream.batches(5)) == planted.expected()
    batches = stream.batches(5)
    next(batches)
    if change == "rewritten":
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    elif change == "touched":
        os.utime(path, ns=(0, 1))
    else:
        os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataChanged):
        list(batches)
    with pytest.raises(DataChanged):
        list(stream.batches(5))


def planted_plainly(folder: Path, *, row_group_rows: int, **recipe: Any) -> Planted:
    """Plant binary features, then write them again without compression."""
    planted = plant(folder, rows=100, layout="binary", row_group_rows=row_group_rows, **recipe)
    for file in planted.dataset.files:
        table = pq.read_table(file.path)
        pq.write_table(table, file.path, row_group_size=row_group_rows, **PLAIN)
    return planted


def test_more_rows_of_one_instant_than_the_budget_holds_are_named(tmp_path: Path) -> None:
    rows, groups = 40_000, 2
    # However small the slices are: none of them is through before all are read.
    table = pa.table(
        {
            "timestamp": pa.array(np.zeros(rows, np.int64)),
            **arrow_features(np.zeros((rows, 64), np.float32), "binary"),
            "label": pa.array(np.zeros(rows, np.int64)),
            "symbol": pa.array(["a", "b"] * (rows // 2)),
        }
    )
    file = write(tmp_path / "a.parquet", table, 1000)
    dataset = make_dataset([file], Features("binary", ("features",), "float32", (64,)), "symbol")
    runs = [WindowRun(g, 3, rows // 2 - 3) for g in range(groups)]
    stream = Stream(dataset, make_plan(runs, 4, 1, 1, ["a", "b"]), "train", budget_bytes=1 << 21)
    with pytest.raises(StreamBudgetTooSmall) as caught:
        next(stream.batches(5))
    assert "SAIMP_STREAM_BUDGET" in (caught.value.hint or "")
    assert "MiB" in caught.value.message
