"""Windows/s of the stream against a bare pyarrow scan of the same row groups, per layout and batch size.

    python bench/stream.py --rows 120000 --row-group 4096 --codec none

Prints rows/s of the scan, windows/s of the stream and its cost over the scan per batch. One torch thread. The
stream reads ahead in a thread: pin the process to one core (taskset -c 0) for figures on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.datasets.schema import DataFile, Dataset, Features
from app.datasets.split import PartPlan, SplitPlan, WindowRun
from worker.stream.stream import Stream

SIZES = (1, 3, 15, 64, 256)
SHAPES: dict[str, tuple[int, ...]] = {"binary": (4, 128), "list": (4, 128), "columns": (64,)}


def main() -> None:
    """Write the files, scan them, stream them, print the table."""
    options = parse()
    torch.set_num_threads(1)
    print(
        f"{options.rows} rows in {options.files} files, row groups of {options.row_group}, {options.codec}, "
    )
    print(f"T={options.window}, checksums {'on' if options.checksums else 'off'}; best of {options.runs}\n")
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_dataset(Path(folder), layout, options)
            report(dataset, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--row-group", type=int, default=4096)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--codec", default="none", help="none, zstd or snappy")
    parser.add_argument("--checksums", action="store_true", help="verify page checksums, in scan and stream")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layouts", nargs="+", choices=SHAPES, default=list(SHAPES))
    return parser.parse_args()


def report(dataset: Dataset, options: argparse.Namespace) -> None:
    plan = plan_all(dataset.rows, options.window)
    warm = Stream(dataset, plan, "train")
    run_through(warm, 256)

    def stream() -> Stream:
        """A stream that checked its rows before; with checksums a new one, whose pass is the first."""
        return Stream(dataset, plan, "train", verify_checksums=True) if options.checksums else warm

    scan_s = best_s(lambda: scan(dataset, verify=options.checksums), options.runs)
    first_s = best_s(lambda: run_through(Stream(dataset, plan, "train"), 256), options.runs)
    print(f"{dataset.features.layout}: scan {dataset.rows / scan_s:,.0f} rows/s;", end=" ")
    print(f"pass that checks for non-finite rows, batch 256: {len(warm) / first_s:,.0f} windows/s")
    for size in SIZES:
        stream_s = best_s(partial(lambda size: run_through(stream(), size), size), options.runs)
        cost_us = (stream_s - scan_s) / (len(warm) / size) * 1e6
        print(
            f"  batch {size:3}: {len(warm) / stream_s:11,.0f} windows/s, {scan_s / stream_s:.2f} of the scan,"
            f" {cost_us:.1f} us per batch over it"
        )


def run_through(stream: Stream, size: int) -> None:
    for _ in stream.batches(size):
        pass


def scan(dataset: Dataset, *, verify: bool) -> None:
    """Read the same columns of every row group, and nothing else."""
    columns = [*dataset.features.columns, dataset.label]
    for data in dataset.files:
        with pq.ParquetFile(data.path, pre_buffer=False, page_checksum_verification=verify) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns=columns, use_threads=False)


def best_s(work: Callable[[], None], runs: int) -> float:
    def timed() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(timed() for _ in range(runs))


def write_dataset(
    folder: Path, layout: Literal["binary", "list", "columns"], options: argparse.Namespace
) -> Dataset:
    rng, shape = np.random.default_rng(0), SHAPES[layout]
    names = tuple(f"f{i}" for i in range(prod(shape))) if layout == "columns" else ("features",)
    files: list[DataFile] = []
    for rows in np.diff(np.linspace(0, options.rows, options.files + 1).astype(int)).tolist():
        values = rng.standard_normal((rows, prod(shape)), dtype=np.float32)
        columns = dict(zip(names, arrow_columns(values, layout), strict=True))
        table = pa.table({**columns, "label": pa.array(rng.integers(0, 4, rows))})
        path = folder / f"{len(files)}.parquet"
        pq.write_table(
            table,
            path,
            row_group_size=options.row_group,
            compression=options.codec,
            use_dictionary=False,
            write_page_checksum=True,
        )
        with pq.ParquetFile(path) as file:
            counts = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        files.append(DataFile(path.name, path, counts))
    features = Features(layout, names, "float32", shape)
    return Dataset(tuple(files), "timestamp", "ns", features, "label", None, None, None, 0.0, "bench")


def arrow_columns(values: np.ndarray[Any, np.dtype[np.float32]], layout: str) -> Sequence[Any]:
    rows, elements = values.shape
    if layout == "columns":
        return [pa.array(np.ascontiguousarray(column)) for column in values.T]
    if layout == "binary":
        return [pa.Array.from_buffers(pa.binary(elements * 4), rows, [None, pa.py_buffer(values.tobytes())])]
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * elements)
    return [pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))]


def plan_all(rows: int, window: int) -> SplitPlan:
    """Plan every window of the dataset as training."""
    count = rows - window + 1
    runs = (WindowRun(0, window - 1, count),)
    train, none = PartPlan(rows, count, 0, 0, (), {}, runs), PartPlan(0, 0, None, None, (), {}, ())
    return SplitPlan(window, 1, ("",), 4, ("0", "1", "2", "3"), (None, None), train, none, None, ())


if __name__ == "__main__":
    main()
