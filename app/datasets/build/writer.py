"""Labelled bars to Parquet files, one per period, in the layout that decodes fastest.

Measured on one core: a row group of uncompressed fixed-size binary features reads at 2.3 M rows/s, the
same numbers as a list of float32 at 0.28 to 0.47 M.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.build.arrays import Features, Ints
from app.datasets.build.bars import join_bars
from app.datasets.build.features import ladder
from app.datasets.build.labels import Labelled
from app.datasets.build.options import CHANNELS, CLASSES, LEVELS, Period

_VERSION = 1
_ROW_BYTES = len(CHANNELS) * LEVELS * 4
_PERIOD_UNITS: dict[Period, Literal["D", "M", "Y"]] = {"day": "D", "month": "M", "year": "Y"}


def dataset_schema(horizon_s: float, build: dict[str, object]) -> pa.Schema:
    """Columns of a dataset, and its metadata under the key `saimp`.

    horizon_s: how far labels look; 0 when they look a number of bars, so that only label_end tells.
    """
    metadata = {
        "version": _VERSION,
        "dtype": "float32",
        "shape": [len(CHANNELS), LEVELS],
        "classes": list(CLASSES),
        "horizon_s": horizon_s,
        "build": build,
    }
    time = pa.timestamp("ns", tz="UTC")
    columns = {"timestamp": time, "features": pa.binary(_ROW_BYTES), "label": pa.int8(), "label_end": time}
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns.items()]
    return pa.schema(fields, metadata={"saimp": json.dumps(metadata, sort_keys=True)})


@dataclass(slots=True)
class Written:
    """What a writer has written so far. beyond: trades outside the ladder."""

    rows: int = 0
    trades: float = 0.0
    beyond: float = 0.0
    class_counts: list[int] = field(default_factory=lambda: [0] * len(CLASSES))
    files: list[str] = field(default_factory=list)
    first_ns: int | None = None
    last_ns: int | None = None


class DatasetWriter:
    """Writes rows in time order into a folder, in row groups of one size, whatever size they come in."""

    def __init__(
        self, folder: Path, schema: pa.Schema, level_size: float, period: Period, rows_per_group: int
    ) -> None:
        self.written = Written()
        self._folder, self._schema = folder, schema
        self._level_size = level_size
        self._period, self._rows_per_group = period, rows_per_group
        self._waiting: list[Labelled] = []
        self._file: pq.ParquetWriter | None = None
        self._name = ""

    def write(self, rows: Labelled) -> None:
        """Add rows; complete row groups are written at once."""
        names = self._file_names(rows.bars.time_ns)
        borders = np.flatnonzero(names[1:] != names[:-1]) + 1
        for start, stop in zip([0, *borders], [*borders, len(rows)], strict=True):
            if str(names[start]) != self._name:
                self._close_file()
                self._name = str(names[start])
            self._waiting.append(rows.slice(start, stop))
            self._flush(self._rows_per_group)

    def close(self) -> None:
        """Write what is left, and make all of it durable."""
        self._close_file()

    def abandon(self) -> None:
        """Close the open file, good or not."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _file_names(self, time_ns: Ints) -> npt.NDArray[np.str_]:
        if self._period == "all":
            return np.full(len(time_ns), "all")
        return np.datetime_as_string(time_ns.view("M8[ns]"), unit=_PERIOD_UNITS[self._period])

    def _flush(self, at_least: int) -> None:
        num_rows = sum(len(part) for part in self._waiting)
        if not num_rows or num_rows < at_least:
            return
        rows = _join(self._waiting)
        whole = num_rows - num_rows % at_least
        for start in range(0, whole, self._rows_per_group):
            self._write_group(rows.slice(start, min(start + self._rows_per_group, whole)))
        self._waiting = [rows.slice(whole, num_rows)] if whole < num_rows else []

    def _write_group(self, rows: Labelled) -> None:
        features, num_beyond = ladder(rows.bars, self._level_size)
        if self._file is None:
            self._file = _open_parquet(self._folder / f"{self._name}.parquet", self._schema)
            self.written.files.append(f"{self._name}.parquet")
        self._file.write_batch(_record_batch(rows, features, self._schema), row_group_size=len(rows))
        self._count(rows, num_beyond)

    def _count(self, rows: Labelled, num_beyond: float) -> None:
        written = self.written
        written.rows += len(rows)
        written.trades += float(rows.bars.cells.trades.sum())
        written.beyond += num_beyond
        counts = np.bincount(rows.label, minlength=len(CLASSES))
        written.class_counts = [total + int(n) for total, n in zip(written.class_counts, counts, strict=True)]
        if written.first_ns is None:
            written.first_ns = int(rows.bars.time_ns[0])
        written.last_ns = int(rows.bars.time_ns[-1])

    def _close_file(self) -> None:
        self._flush(1)
        if self._file is not None:
            self._file.close()
            self._file = None
            _sync(self._folder / f"{self._name}.parquet")


def _join(parts: list[Labelled]) -> Labelled:
    if len(parts) == 1:
        return parts[0]
    return Labelled(
        join_bars([part.bars for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.label_end_ns for part in parts]),
    )


def _record_batch(rows: Labelled, features: Features, schema: pa.Schema) -> pa.RecordBatch:
    stored = np.ascontiguousarray(features, dtype="<f4")
    arrays = [
        pa.array(rows.bars.time_ns, pa.int64()).cast(schema.field("timestamp").type),
        pa.FixedSizeBinaryArray.from_buffers(pa.binary(_ROW_BYTES), len(rows), [None, pa.py_buffer(stored)]),
        pa.array(rows.label, pa.int8()),
        pa.array(rows.label_end_ns, pa.int64()).cast(schema.field("label_end").type),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        compression={"timestamp": "zstd", "features": "none", "label": "zstd", "label_end": "zstd"},
        use_dictionary=False,
        write_statistics=["timestamp", "label", "label_end"],
        write_page_checksum=True,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
