"""Windows/s of the stream and of its peers, on the same rows, in one run: who is how many times faster.

    taskset -c 0 python -m bench.stream_peers --rows 40000

Peers: a plain torch IterableDataset on pyarrow behind a DataLoader, and, where they are installed, litdata,
Hugging Face datasets (streaming Parquet) and MosaicML streaming. None of them knows windows: they give rows,
a deque makes windows of T = 32 of them, and DataLoader collates batches [B, 32, 4, 128]. All take turns on
one core; medians. The stream runs after its first pass, so without checksums, like the peers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset

from app.datasets.schema import Dataset
from bench.stream import plan_all, write_dataset
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

WINDOW, SHAPE = 32, (4, 128)
SIZES = (3, 15, 256)
Rows = Callable[[], Iterable[tuple[Any, int]]]


class Windows(IterableDataset[tuple[torch.Tensor, int]]):
    """Windows of rows that come one by one, each copied out."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        held: deque[Any] = deque(maxlen=WINDOW)
        for row, label in self._rows():
            held.append(row)
            if len(held) == WINDOW:
                yield torch.from_numpy(np.stack(held)), label


class Naive(IterableDataset[tuple[torch.Tensor, int]]):
    """What is written first: row groups by pyarrow, a window is a slice."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        tail, old = np.empty((0, *SHAPE), np.float32), np.empty(0, np.int64)
        for data in self._dataset.files:
            with pq.ParquetFile(data.path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=["features", "label"], use_threads=False)
                    fresh = self._rows(table.column("features").chunk(0))
                    rows = np.concatenate([tail, fresh])
                    labels = np.concatenate([old, table.column("label").to_numpy()])
                    for first in range(len(rows) - WINDOW + 1):
                        yield torch.from_numpy(rows[first : first + WINDOW]), int(labels[first + WINDOW - 1])
                    tail, old = rows[-WINDOW + 1 :], labels[-WINDOW + 1 :]

    def _rows(self, column: Any) -> Any:
        if self._dataset.features.layout == "binary":
            buffer, offset = column.buffers()[1], column.offset
            return np.frombuffer(buffer, "<f4").reshape(-1, *SHAPE)[offset : offset + len(column)]
        return column.flatten().to_numpy().reshape(-1, *SHAPE)


def main() -> None:
    """Write the rows once for each peer, time all in turns, print ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--budget", type=int, default=12_000, help="windows that a slow peer is timed on")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.files, options.row_group, options.window, options.codec = 10, 4096, WINDOW, "none"
    with tempfile.TemporaryDirectory() as name:
        works: dict[str, Callable[[int], Iterable[Any]]] = {}
        for layout in ("binary", "list"):
            folder = Path(name) / layout
            folder.mkdir()
            dataset = write_dataset(folder, layout, options)
            plan = plan_all(dataset.rows, WINDOW)
            ordered = Stream(dataset, plan, "train")
            mixed = Stream(dataset, plan, "train", shuffle=Shuffle(16384, 1, 0))
            works[f"stream, {layout}"] = ordered.batches
            works[f"stream shuffled, {layout}"] = mixed.batches
            works[f"naive torch, {layout}"] = partial(_loaded, Naive(dataset))
        for peer, make in (
            ("litdata", litdata_rows),
            ("datasets", hf_rows),
            ("mosaicml-streaming", mosaic_rows),
        ):
            try:
                rows = make(dataset, Path(name) / peer)
                works[f"{peer} {version(peer)}"] = partial(_loaded, Windows(rows))
            except (ImportError, PackageNotFoundError) as error:
                print(f"{peer}: skipped, {error}")
        for size in SIZES:
            report(works, size, options.runs, options.budget)


def report(works: dict[str, Callable[[int], Iterable[Any]]], size: int, runs: int, budget: int) -> None:
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs + 1):  # the first turn warms up
        for name, work in works.items():
            most = None if name.startswith(("stream", "naive")) else budget // size
            start, windows = time.perf_counter(), 0
            for batch in islice(work(size), most):
                windows += len(batch[0]) if isinstance(batch, list | tuple) else len(batch)
            speeds[name].append(windows / (time.perf_counter() - start))
    speed = {name: median(found[1:]) for name, found in speeds.items()}
    print(
        f"\nbatch {size}: windows/s, and how many times that the stream makes (in time order: list, binary)"
    )
    for name in works:
        ratios = [speed[f"stream, {layout}"] / speed[name] for layout in ("list", "binary")]
        print(f"  {name:30} {speed[name]:11,.0f}  {ratios[0]:6.1f}x {ratios[1]:6.1f}x")


def _loaded(windows: IterableDataset[Any], size: int) -> Iterable[Any]:
    return DataLoader(windows, batch_size=size)


def _every_row(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for data in dataset.files:
        with pq.ParquetFile(data.path) as file:
            for batch in file.iter_batches(1024, columns=["features", "label"]):
                rows = batch.column(0).flatten().to_numpy().reshape(-1, *SHAPE)
                for row, label in zip(rows, batch.column(1).to_pylist(), strict=True):
                    yield {"x": row.copy(), "y": label}


def litdata_rows(dataset: Dataset, folder: Path) -> Rows:
    """Write litdata chunks; give their rows."""
    from litdata import StreamingDataset  # noqa: PLC0415  (may not be installed)
    from litdata.streaming.writer import BinaryWriter  # noqa: PLC0415

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index, row in enumerate(_every_row(dataset)):
        writer.add_item(index, row)
    writer.done()
    writer.merge(1)
    return lambda: ((row["x"], row["y"]) for row in StreamingDataset(str(folder)))


def hf_rows(dataset: Dataset, folder: Path) -> Rows:
    """Stream the same Parquet files by Hugging Face datasets."""
    from datasets import load_dataset  # noqa: PLC0415

    files = [str(file.path) for file in dataset.files]
    found = load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder))
    found = found.with_format("numpy")
    return lambda: ((row["features"].reshape(SHAPE), int(row["label"])) for row in found)


def mosaic_rows(dataset: Dataset, folder: Path) -> Rows:
    """Write MosaicML shards; give their rows."""
    from streaming import MDSWriter, StreamingDataset  # noqa: PLC0415

    with MDSWriter(out=str(folder), columns={"x": "ndarray:float32:4,128", "y": "int"}) as out:
        for row in _every_row(dataset):
            out.write(row)
    found = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
    return lambda: ((row["x"], row["y"]) for row in found)


if __name__ == "__main__":
    main()
