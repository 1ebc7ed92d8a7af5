"""Windows/s of the stream against a bare pyarrow scan of the same row groups, per layout and batch size.

    taskset -c 0 python bench/stream.py --rows 120000 --row-group 4096 --codec none

Prints rows/s of the scan, then of the stream in time order and shuffled: windows/s, the ratio to the scan,
and what a batch costs beyond it. Scan and stream take turns; medians and minima of all turns are shown, since
other processes only ever add time. One torch thread. The stream reads ahead in a thread: pin the process to
one core. The stream's first pass, which verifies, is shown apart: later ones read what was verified.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.datasets.schema import DataFile, Dataset, Features
from app.datasets.split import PartPlan, SplitPlan, WindowRun
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

SIZES = (1, 3, 15, 64, 256)
SHAPES: dict[str, tuple[int, ...]] = {"binary": (4, 128), "list": (4, 128), "columns": (64,)}


def main() -> None:
    """Write the files, scan them, stream them, print the table."""
    options = parse()
    torch.set_num_threads(1)
    print(f"{options.rows} rows, {options.files} files, row groups of {options.row_group}, {options.codec},")
    print(f"T={options.window}; {options.runs} turns: median (minimum)")
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            report(write_dataset(Path(folder), layout, options), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=120_000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--row-group", type=int, default=4096)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--codec", default="none", help="none, zstd or snappy")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--layouts", nargs="+", choices=SHAPES, default=list(SHAPES))
    return parser.parse_args()


def report(dataset: Dataset, options: argparse.Namespace) -> None:
    plan = plan_all(dataset.rows, options.window)
    ordered = Stream(dataset, plan, "train")
    mixed = Stream(dataset, plan, "train", shuffle=Shuffle(16384, 1, 0))
    for stream in (ordered, mixed):
        run_through(stream, 256)
    first = partial(Stream, dataset, plan, "train", verify_checksums=True)
    works: dict[str, tuple[int, Callable[[], None]]] = {
        "scan": (0, partial(scan, dataset, verify=False)),
        "scan with checksums": (0, partial(scan, dataset, verify=True)),
        "first pass, batch 256": (256, lambda: run_through(first(), 256)),
    }
    works |= {f"in time order, batch {size}": (size, partial(run_through, ordered, size)) for size in SIZES}
    works |= {f"shuffled, batch {size}": (size, partial(run_through, mixed, size)) for size in SIZES[1:]}
    times = take_turns({name: work for name, (_, work) in works.items()}, options.runs)
    print(f"\n{dataset.features.layout}")
    scans = times["scan"]
    for name, (size, _) in works.items():
        middle, low = median(times[name]), min(times[name])
        line = f"  {name:25} {dataset.rows / middle:11,.0f} ({dataset.rows / low:11,.0f}) rows/s"
        if size:
            ratios = median(scans) / middle, min(scans) / low
            costs = [
                (t - s) / (len(ordered) / size) * 1e6 for t, s in ((middle, median(scans)), (low, min(scans)))
            ]
            line += f"  {ratios[0]:.2f} ({ratios[1]:.2f}) of the scan,"
            line += f" {costs[0]:+.1f} ({costs[1]:+.1f}) us a batch"
        print(line)


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


def take_turns(works: dict[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Time each work once a turn, in seconds: a busy machine is as busy for one as for the other."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


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
