"""Peak memory of the stream over its imports, and how long a seek and an opening take.

    python -m bench.stream_memory

Memory: a process for each case; rows of 4 x 128 float32, batch 15, two epochs. Seek: first batch of a stream
after skipping to random places of 5 million rows of 16 float32. Opening: 1,000 files, first batch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.datasets.schema import DataFile, Dataset, Features, open_dataset
from app.jobs.config import DataConfig
from bench.stream import SHAPES, arrow_columns, plan_all
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

ROWS = 12_000
CASES = ("plain", "list", "columns", "zstd", "giant row group", "giant zstd", "shuffled")


def main() -> None:
    """Print one line for each figure."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", nargs=2, metavar=("case", "folder"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 40])
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
        return
    for case in options.cases:
        peaks = []
        for times in options.times:
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), case, times)
                command = [sys.executable, "-m", "bench.stream_memory", "--child", case, folder]
                peaks.append(
                    float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                )
        shown = ", ".join(f"{t}x {peak:.0f} MiB" for t, peak in zip(options.times, peaks, strict=True))
        print(f"peak over imports, {case}: {shown}", flush=True)
    seek()
    opening()


def write(folder: Path, case: str, times: int) -> None:
    """Write `times` files of ROWS rows; giant: all rows in one row group of one file."""
    layout = case if case in SHAPES else "binary"
    is_giant = case.startswith("giant")
    codec = "zstd" if "zstd" in case else "none"
    rng = np.random.default_rng(0)
    batches = []
    for index in range(times):
        values = rng.standard_normal((ROWS, int(np.prod(SHAPES[layout]))), dtype=np.float32)
        names = [f"f{i}" for i in range(values.shape[1])] if layout == "columns" else ["features"]
        columns = dict(zip(names, arrow_columns(values, layout), strict=True))
        table = pa.table({**columns, "label": pa.array(rng.integers(0, 4, ROWS))})
        if is_giant:
            batches.append(table)
        else:
            pq.write_table(
                table, folder / f"{index:03}.parquet", 4096, compression=codec, use_dictionary=False
            )
    if is_giant:
        whole = pa.concat_tables(batches)
        pq.write_table(whole, folder / "0.parquet", len(whole), compression=codec, use_dictionary=False)


def described(folder: Path, layout: str, shape: tuple[int, ...]) -> Dataset:
    files = []
    for path in sorted(folder.iterdir()):
        with pq.ParquetFile(path) as file:
            counts = tuple(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
        files.append(DataFile(path.name, path, counts))
    names = tuple(f"f{i}" for i in range(int(np.prod(shape)))) if layout == "columns" else ("features",)
    stored: Any = layout
    features = Features(stored, names, "float32", shape)
    return Dataset(tuple(files), "timestamp", "ns", features, "label", None, None, None, 0.0, str(folder))


def child(case: str, folder: Path) -> None:
    """Stream two epochs; print the growth of this process's peak over what its imports took, in MiB."""
    layout = case if case in SHAPES else "binary"
    before = peak_mib()
    dataset = described(folder, layout, SHAPES[layout])
    shuffle = Shuffle(16384, 1, 0) if case == "shuffled" else None
    stream = Stream(dataset, plan_all(dataset.rows, 32), "train", verify_checksums=True, shuffle=shuffle)
    for epoch in (1, 2):
        for batch in stream.batches(15, epoch=epoch):
            float(batch.rows_RF[0].sum())
    print(peak_mib() - before)


def peak_mib() -> float:
    """Return the largest resident size so far; ru_maxrss would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def seek() -> None:
    rows, elements = 5_000_000, 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(50):
            values = np.zeros((rows // 50, elements), np.float32)
            (column,) = arrow_columns(values, "binary")
            table = pa.table({"features": column, "label": pa.array(np.zeros(rows // 50, np.int8))})
            pq.write_table(
                table, folder / f"{index:03}.parquet", 4096, compression="none", use_dictionary=False
            )
        dataset = described(folder, "binary", (elements,))
        plan = plan_all(rows, 32)
        places = np.random.default_rng(0).integers(0, rows - 1000, 25).tolist()
        for title, shuffle in (("in time order", None), ("shuffled", Shuffle(16384, 1, 0))):
            taken = []
            for place in places:
                start = time.perf_counter()
                stream = Stream(dataset, plan, "train", verify_checksums=True, shuffle=shuffle)
                batches = stream.batches(15, skip=place)
                next(batches)
                taken.append(time.perf_counter() - start)
                batches.close()
            print(
                f"seek in {rows:,} rows, {title}:"
                f" median {median(taken) * 1e3:.1f}, worst {max(taken) * 1e3:.1f} ms"
            )


def opening() -> None:
    files, rows = 1000, 200
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(files):
            (column,) = arrow_columns(np.zeros((rows, 512), np.float32), "binary")
            times = pa.array((np.arange(rows) + index * rows) * 10**9).cast(pa.timestamp("ns"))
            labels = pa.array(np.zeros(rows, np.int8))
            table = pa.table({"timestamp": times, "features": column, "label": labels})
            pq.write_table(table, folder / f"{index:04}.parquet", compression="none", use_dictionary=False)
        start = time.perf_counter()
        dataset = open_dataset(folder, DataConfig(path=".", shape=[4, 128]))
        opened = time.perf_counter()
        batches = Stream(dataset, plan_all(dataset.rows, 32), "train", verify_checksums=True).batches(15)
        next(batches)
        last = time.perf_counter()
        batches.close()
        print(f"{files} files: footers {opened - start:.2f} s, first batch after that {last - opened:.3f} s")


if __name__ == "__main__":
    main()
