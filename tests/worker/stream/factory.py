"""Datasets on disk and their plans, with everything known about them in memory.

Shapes: N rows of the dataset in content order, E elements of a row, S samples, T rows in a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.datasets.schema import DataFile, Dataset, Features
from app.datasets.split import PartPlan, SplitPlan, WindowRun
from worker.stream.batch import Batch

Layout = Literal["binary", "list", "large_list", "fixed_list", "columns"]
Order = Literal["interleaved", "by_group", "file_per_group"]

_serial = itertools.count()


@dataclass(frozen=True)
class Planted:
    """A dataset with a plan, and the samples it must give, brute force."""

    dataset: Dataset
    plan: SplitPlan
    features_NE: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    samples: list[tuple[NDArray[np.int64], int]]  # (the T rows, the label), in contract order

    def expected(self) -> list[tuple[bytes, int]]:
        """Return the samples as (bytes of the window, label)."""
        return [(self.features_NE[rows].tobytes(), label) for rows, label in self.samples]


def seen(batches: Iterator[Batch]) -> list[tuple[bytes, int]]:
    """Return the samples of batches as (bytes of the window, label)."""
    return [
        (window.numpy().tobytes(), int(label))
        for batch in batches
        for window, label in zip(batch.windows_BTF(), batch.labels_B, strict=True)
    ]


def plant(
    folder: Path,
    *,
    rows: int = 60,
    window: int = 4,
    stride: int = 1,
    shape: tuple[int, ...] = (2, 3),
    layout: Layout = "list",
    dtype: str = "float32",
    dictionary: bool = False,
    row_group_rows: int = 7,
    num_files: int = 1,
    num_groups: int = 0,
    order: Order = "interleaved",
    kept: float = 1.0,
    seed: int = 0,
    classes: int = 3,
) -> Planted:
    """Write a random dataset and plan a part of it.

    num_groups: 0 = ungrouped; kept: the fraction of window candidates in the plan, holes at random.
    """
    rng = np.random.default_rng(seed)
    times_N = np.cumsum(rng.integers(0, 3, rows)) * 1000
    groups_N = rng.integers(0, max(num_groups, 1), rows)
    if num_groups and order != "interleaved":
        placed_N = np.argsort(groups_N, kind="stable")
        times_N, groups_N = times_N[placed_N], groups_N[placed_N]
    cuts = _cuts(rng, groups_N, rows, num_files, order)
    features_NE = rng.integers(0, 100, (rows, prod(shape))).astype(dtype)
    labels_N = rng.integers(0, classes, rows)

    files = []
    for first, last in itertools.pairwise(cuts):
        part = slice(first, last)
        columns = {"timestamp": pa.array(times_N[part]).cast(pa.timestamp("us"))}
        columns |= arrow_features(features_NE[part], layout, dictionary)
        columns["label"] = pa.array(labels_N[part])
        if num_groups:
            columns["symbol"] = pa.array([f"g{g:03}" for g in groups_N[part]])
        name = f"{rng.integers(1 << 30)}.parquet"  # the order is in the content, not in the name
        files.append(write(folder / name, pa.table(columns), row_group_rows, use_dictionary=dictionary))

    names = tuple(f"f{i}" for i in range(prod(shape))) if layout == "columns" else ("features",)
    stored = layout if layout in ("binary", "columns") else "list"
    dataset = make_dataset(
        files, Features(stored, names, dtype, shape), group="symbol" if num_groups else None
    )
    runs, samples = _plan(rng, groups_N, times_N, labels_N, window, stride, kept)
    plan = make_plan(runs, window, stride, classes, [f"g{g:03}" for g in range(num_groups)] or [""])
    return Planted(dataset, plan, features_NE.astype(np.float32), labels_N, samples)


def arrow_features(features_NE: NDArray[Any], layout: Layout, dictionary: bool = False) -> dict[str, Any]:
    """Return the columns that hold the features in one layout."""
    num_rows, elements = features_NE.shape
    values = pa.array(features_NE.ravel())
    if layout == "columns":
        columns = {f"f{i}": pa.array(np.ascontiguousarray(features_NE[:, i])) for i in range(elements)}
        return {name: c.dictionary_encode() if dictionary else c for name, c in columns.items()}
    if layout == "binary":
        kind = pa.binary(elements * features_NE.dtype.itemsize)
        buffer = pa.py_buffer(features_NE.tobytes())
        return {"features": pa.Array.from_buffers(kind, num_rows, [None, buffer])}
    if layout == "fixed_list":
        return {"features": pa.FixedSizeListArray.from_arrays(values, elements)}
    offsets = np.arange(num_rows + 1) * elements
    if layout == "large_list":
        return {"features": pa.LargeListArray.from_arrays(pa.array(offsets), values)}
    return {"features": pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)}


def write(path: Path, table: pa.Table, row_group_rows: int, **options: Any) -> DataFile:
    """Write one file and describe it."""
    pq.write_table(table, path, row_group_size=row_group_rows, write_page_checksum=True, **options)
    with pq.ParquetFile(path) as file:
        footer = file.metadata
        counts = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    return DataFile(path.name, path, counts)


def make_dataset(files: Sequence[DataFile], features: Features, group: str | None = None) -> Dataset:
    """Describe files as a dataset with a fingerprint of its own."""
    return Dataset(
        files=tuple(files),
        timestamp="timestamp",
        timestamp_unit="us",
        features=features,
        label="label",
        label_end=None,
        group=group,
        classes=None,
        horizon_s=0.0,
        fingerprint=f"planted-{next(_serial)}",
    )


def make_plan(
    runs: Sequence[WindowRun], window: int, stride: int, classes: int, groups: Sequence[str] = ("",)
) -> SplitPlan:
    """Plan these runs as the training part; the other parts are empty."""
    total = sum(run.count for run in runs)
    train = PartPlan(total, total, 0, 0, (0,) * classes, {}, tuple(runs))
    empty = PartPlan(0, 0, None, None, (0,) * classes, {}, ())
    names = tuple(str(i) for i in range(classes))
    return SplitPlan(window, stride, tuple(groups), classes, names, (None, None), train, empty, None, ())


def _cuts(rng: Any, groups_N: NDArray[Any], rows: int, num_files: int, order: Order) -> list[int]:
    if order == "file_per_group":
        return [0, *(np.flatnonzero(np.diff(groups_N)) + 1).tolist(), rows]
    inner = rng.choice(np.arange(1, rows), min(num_files, rows) - 1, replace=False)
    return [0, *sorted(inner.tolist()), rows]


def _plan(
    rng: Any,
    groups_N: NDArray[Any],
    times_N: NDArray[Any],
    labels_N: NDArray[Any],
    window: int,
    stride: int,
    kept: float,
) -> tuple[list[WindowRun], list[tuple[NDArray[np.int64], int]]]:
    """Keep candidates at random; return them as runs, and one by one."""
    runs: list[WindowRun] = []
    found: list[tuple[int, int, int, NDArray[np.int64], int]] = []
    for group in np.unique(groups_N).tolist():
        rows_G = np.flatnonzero(groups_N == group)
        last = -1
        for end in range(window - 1, len(rows_G), stride):
            if rng.random() >= kept:
                continue
            if runs and runs[-1].group == group and last == end - stride:
                runs[-1] = WindowRun(group, runs[-1].first, runs[-1].count + 1)
            else:
                runs.append(WindowRun(group, end, 1))
            last = end
            rows_T = rows_G[end - window + 1 : end + 1]
            found.append((int(times_N[rows_T[-1]]), group, end, rows_T, int(labels_N[rows_T[-1]])))
    found.sort(key=lambda sample: sample[:3])
    return runs, [(rows_T, label) for *_, rows_T, label in found]
