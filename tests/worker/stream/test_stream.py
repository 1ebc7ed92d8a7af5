"""The stream gives every sample of the plan once, in order, from anywhere, without copies where promised."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.datasets.schema import Features
from app.datasets.split import WindowRun
from tests.worker.stream.factory import (
    Planted,
    arrow_features,
    make_dataset,
    make_plan,
    plant,
    seen,
    write,
)
from worker.stream.stream import Stream

torch.set_num_threads(1)

LAYOUTS = ["binary", "list", "large_list", "fixed_list", "columns"]
DTYPES = ["float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]


@st.composite
def recipes(draw: st.DrawFn, num_groups: st.SearchStrategy[int]) -> dict[str, object]:
    return {
        "rows": draw(st.integers(2, 90)),
        "window": draw(st.integers(1, 9)),
        "stride": draw(st.sampled_from([1, 1, 1, 2, 3, 5, 12])),
        "shape": draw(st.sampled_from([(1,), (3,), (2, 3), (2, 1, 2)])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "dictionary": draw(st.booleans()),
        "row_group_rows": draw(st.sampled_from([1, 2, 7, 30, 100])),
        "num_files": draw(st.integers(1, 4)),
        "num_groups": draw(num_groups),
        "order": draw(st.sampled_from(["interleaved", "by_group", "file_per_group"])),
        "kept": draw(st.sampled_from([1.0, 1.0, 0.9, 0.4])),
        "seed": draw(st.integers(0, 1 << 20)),
    }


# From one row in a slice to everything at once: blocks end anywhere.
BUDGETS = st.sampled_from([1, 500, 2000, 1 << 20])
SIZES = st.sampled_from([1, 2, 3, 5, 15, 64])


def stream_of(planted: Planted, budget_bytes: int = 1 << 20) -> Stream:
    return Stream(planted.dataset, planted.plan, "train", budget_bytes=budget_bytes, verify_checksums=True)


def assert_gives_the_plan(recipe: dict[str, object], size: int, budget: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(Path(folder), **recipe)  # type: ignore[arg-type]
        expected, stream = planted.expected(), stream_of(planted, budget)
        batches = list(stream.batches(size))
        assert seen(iter(batches)) == expected
        assert len(stream) == len(expected)
        assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)

        skip = data.draw(st.integers(0, len(expected)), label="skip")
        resumed = list(stream_of(planted, budget).batches(size, skip=skip))
        assert seen(iter(resumed)) == expected[skip:]

        if batches:
            batch = data.draw(st.sampled_from(batches), label="batch")
            first = data.draw(st.integers(0, len(batch) - 1), label="first")
            count = data.draw(st.integers(1, len(batch) - first), label="count")
            assert seen(iter([batch.narrow(first, count)])) == seen(iter([batch]))[first : first + count]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(st.just(0)), size=SIZES, budget=BUDGETS, data=st.data())
def test_every_sample_of_the_plan_comes_once_and_in_order(
    recipe: dict[str, object], size: int, budget: int, data: st.DataObject
) -> None:
    assert_gives_the_plan(recipe, size, budget, data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(st.integers(1, 7)), size=SIZES, budget=BUDGETS, data=st.data())
def test_groups_are_merged_by_time_then_group(
    recipe: dict[str, object], size: int, budget: int, data: st.DataObject
) -> None:
    assert_gives_the_plan(recipe, size, budget, data)


def test_resume_at_every_position_gives_exactly_the_tail(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=50, num_files=3, kept=0.8)
    expected, stream = planted.expected(), stream_of(planted)
    for skip in range(len(expected) + 1):
        assert seen(stream.batches(3, skip=skip)) == expected[skip:]


@pytest.mark.parametrize("budget", [1, 400, 1 << 20])
@pytest.mark.parametrize("stride", [1, 2, 9])
def test_a_batch_has_the_same_rows_wherever_blocks_end(tmp_path: Path, stride: int, budget: int) -> None:
    planted = plant(tmp_path, rows=80, stride=stride, kept=0.9)
    whole = list(stream_of(planted, 1 << 30).batches(5))
    cut = list(stream_of(planted, budget).batches(5))
    for a, b in zip(whole, cut, strict=True):
        assert torch.equal(a.rows_RF, b.rows_RF)
        assert torch.equal(a.starts_B, b.starts_B)
        assert a.is_dense == b.is_dense


def test_narrow_of_a_step_equals_smaller_batches(tmp_path: Path) -> None:
    stream = stream_of(plant(tmp_path, rows=70, kept=0.9))
    cut = [b.narrow(i, min(3, len(b) - i)) for b in stream.batches(15) for i in range(0, len(b), 3)]
    for a, b in zip(cut, stream.batches(3), strict=True):
        assert torch.equal(a.rows_RF, b.rows_RF)
        assert torch.equal(a.starts_B, b.starts_B)
        assert torch.equal(a.labels_B, b.labels_B)
        assert a.is_dense == b.is_dense


@pytest.mark.parametrize("layout", ["binary", "list", "fixed_list"])
def test_batches_inside_a_block_share_its_memory(tmp_path: Path, layout: str) -> None:
    planted = plant(tmp_path, rows=63, layout=layout, row_group_rows=64)  # type: ignore[arg-type]
    batches = list(stream_of(planted).batches(5))
    start = batches[0].rows_RF.data_ptr()
    row_bytes = 4 * 6
    for i, batch in enumerate(batches):
        assert batch.is_dense
        assert batch.rows_RF.shape == (len(batch) + 3, 2, 3)
        assert batch.rows_RF.data_ptr() == start + i * 5 * row_bytes
        assert batch.windows_BTF().data_ptr() == batch.rows_RF.data_ptr()
        assert batch.narrow(1, 2).rows_RF.data_ptr() == batch.rows_RF.data_ptr() + row_bytes


def test_only_batches_over_a_border_copy_their_rows(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=64, layout="binary", row_group_rows=32, shape=(4, 2048))
    batches = list(stream_of(planted, 1 << 30).batches(5))
    storages = [batch.rows_RF.untyped_storage().data_ptr() for batch in batches]
    assert len(set(storages)) == 3  # the two blocks, and the rows between them


def test_leaving_the_loop_early_ends_the_thread_and_closes_the_files(tmp_path: Path) -> None:
    stream = stream_of(plant(tmp_path, rows=90, num_files=4), budget_bytes=1)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for taken in range(1, 12):
        batches = stream.batches(3)
        for _ in range(taken):
            next(batches)
        assert threading.active_count() == threads + 1
        batches.close()
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == files


def test_an_empty_part_has_no_batches(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    stream = Stream(planted.dataset, planted.plan, "val")
    assert len(stream) == 0
    assert list(stream.batches(3)) == []


def test_skipping_reads_only_the_row_groups_it_needs(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=60, num_files=3)
    whole = planted.dataset.files[0].path
    whole.unlink()
    first_of_second = planted.dataset.files[0].rows
    samples = len([rows for rows, _ in planted.samples if rows[0] < first_of_second])
    assert seen(stream_of(planted).batches(4, skip=samples)) == planted.expected()[samples:]


def test_a_giant_row_group_is_read_in_slices_within_the_budget(tmp_path: Path) -> None:
    rows, budget = 20_000, 8 << 20
    planted = plant(tmp_path, rows=rows, shape=(512,), layout="binary", row_group_rows=rows)
    before = pa.total_allocated_bytes()
    peak = windows = 0
    for batch in stream_of(planted, budget).batches(64):
        peak = max(peak, pa.total_allocated_bytes() - before)
        windows += len(batch)
    assert windows == rows - 3
    assert peak <= budget < rows * 512 * 4


@pytest.mark.parametrize("order", ["interleaved", "by_group", "file_per_group"])
def test_groups_are_held_within_the_budget(tmp_path: Path, order: str) -> None:
    budget = 8 << 20
    planted = plant(
        tmp_path,
        rows=12_000,
        shape=(512,),
        layout="binary",
        row_group_rows=1000,
        num_groups=8,
        order=order,  # type: ignore[arg-type]
    )
    before, peak = pa.total_allocated_bytes(), 0
    for batch in stream_of(planted, budget).batches(64):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert len(batch)
    passes = 0 if order == "interleaved" else 8  # row groups that are open at once, one for each group
    assert peak <= budget + passes * (3 << 20)


def test_the_rows_of_a_sparse_group_do_not_keep_old_blocks(tmp_path: Path) -> None:
    rows, window = 20_000, 8
    groups_N = np.zeros(rows, np.int64)
    groups_N[::900] = 1
    names = pa.array(["busy", "sparse"]).take(pa.array(groups_N))
    features = np.zeros((rows, 512), np.float32)
    table = pa.table(
        {
            "timestamp": pa.array(np.arange(rows)),
            **arrow_features(features, "binary"),
            "label": pa.array(np.zeros(rows, np.int64)),
            "symbol": names,
        }
    )
    file = write(tmp_path / "one.parquet", table, 500)
    dataset = make_dataset([file], Features("binary", ("features",), "float32", (512,)), "symbol")
    counts = np.bincount(groups_N)
    runs = [WindowRun(g, window - 1, int(count) - window + 1) for g, count in enumerate(counts)]
    del table, features
    before, peak = pa.total_allocated_bytes(), 0
    stream = Stream(dataset, make_plan(runs, window, 1, 1, ["busy", "sparse"]), "train")
    for batch in stream.batches(16):
        peak = max(peak, pa.total_allocated_bytes() - before)
        assert len(batch)
    assert peak < 8 * 500 * 2048
