"""Small real things for tests: databases, queues, requests, Parquet files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from app.db import Database, connect
from app.jobs.config import JobRequest
from app.jobs.queue import Owner, Queue
from app.migrate import upgrade

OWNER = Owner("box", "boot", 4711, 1.0)
SLOT = "box/0"


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def make_database(folder: Path) -> Database:
    """Make a migrated SQLite file."""
    database = connect(f"sqlite:///{folder / 'saimp.db'}")
    upgrade(database)
    return database


def make_queue(folder: Path, clock: Clock | None = None) -> Queue:
    """Make a queue on a fresh SQLite file."""
    return Queue(make_database(folder), clock or Clock())


def make_request(**sections: Any) -> JobRequest:
    """Make a job's body; `data.path` is "demo" unless given."""
    body = {"data": {"path": "demo"}, **sections}
    return JobRequest.model_validate(body, strict=False)


def write_dataset(
    folder: Path,
    *,
    rows: int = 400,
    features: int = 4,
    classes: int = 4,
    seed: int = 0,
    files: int = 1,
    row_group: int = 64,
    bad_row: int | None = None,
    center: float = 0.0,
    spread: float = 1.0,
) -> None:
    """Write a learnable dataset: rows a second apart, list<float32> features, labels from a feature.

    bad_row: a row whose last feature is not a number; center, spread: mean and deviation of the features.
    """
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((rows, features)).astype(np.float32)
    labels = np.digitize(values[:, 0], np.linspace(-1, 1, classes - 1)).astype(np.int64)
    values = (values * spread + center).astype(np.float32)
    if bad_row is not None:
        values[bad_row, -1] = np.nan
    times = np.arange(rows, dtype=np.int64) * 1_000_000
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        table = pa.table(
            {
                "timestamp": pa.array(times[part], pa.timestamp("us", tz="UTC")),
                "features": pa.FixedSizeListArray.from_arrays(pa.array(values[part].ravel()), features),
                "label": pa.array(labels[part]),
            }
        )
        pq.write_table(
            table, folder / f"part-{number:03d}.parquet", row_group_size=row_group, write_page_checksum=True
        )
