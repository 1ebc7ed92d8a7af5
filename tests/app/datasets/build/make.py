"""Trades to build from, files of them, and what a build wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from app.datasets.build.arrays import Features, Ints, Signs
from app.datasets.build.trades import Trades

START_NS = 1_700_000_000_000_000_000
TICK = 0.1


def random_trades(num: int, seed: int, *, max_step: int = 2, max_gap_ms: int = 3000) -> Trades:
    """Trades on a grid of 0.1, with runs of equal times and prices, every time a whole millisecond."""
    rng = np.random.default_rng(seed)
    gaps = rng.integers(0, max_gap_ms, num) * (rng.random(num) < 0.6)
    ticks = 10_000 + np.cumsum(rng.integers(-max_step, max_step + 1, num))
    return Trades(
        START_NS + np.cumsum(gaps) * 1_000_000,
        np.round(ticks * TICK, 1),
        np.round(rng.exponential(3, num) + 0.001, 3),
        np.where(rng.random(num) < 0.5, 1, -1).astype(np.int8),
    )


def cut(trades: Trades, borders: Sequence[int]) -> list[Trades]:
    """The same trades in several batches; empty ones are left out."""
    edges = [0, *sorted(borders), len(trades.time_ns)]
    return [part(trades, a, b) for a, b in pairwise(edges) if b > a]


def part(trades: Trades, start: int, stop: int) -> Trades:
    return Trades(
        trades.time_ns[start:stop],
        trades.price[start:stop],
        trades.volume[start:stop],
        trades.side[start:stop],
    )


def table(trades: Trades, *, side: bool = True) -> pa.Table:
    columns = {
        "timestamp": pa.array(trades.time_ns).cast(pa.timestamp("ns", tz="UTC")),
        "price": trades.price,
        "volume": trades.volume,
    }
    if side:
        columns["side"] = np.where(trades.side > 0, "buy", "sell")
    return pa.table(columns)


def write_parquet(path: Path, trades: Trades, *, side: bool = True) -> Path:
    pq.write_table(table(trades, side=side), path, row_group_size=777)
    return path


def write_csv(path: Path, trades: Trades, *, side: bool = True) -> Path:
    pyarrow.csv.write_csv(table(trades, side=side), path)
    return path


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


@dataclass(frozen=True)
class Rows:
    time_ns: Ints
    features: Features
    label: Signs
    label_end_ns: Ints

    def __len__(self) -> int:
        return len(self.label)


def read_rows(folder: Path) -> Rows:
    """Every row of a dataset, in file name order (which is time order)."""
    whole = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
    raw = b"".join(whole["features"].to_pylist())
    return Rows(
        whole["timestamp"].cast(pa.int64()).to_numpy(),
        np.frombuffer(raw, "<f4").reshape(-1, 4, 128),
        whole["label"].to_numpy(),
        whole["label_end"].cast(pa.int64()).to_numpy(),
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
