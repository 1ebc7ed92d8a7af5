"""Small datasets on disk, and random ones whose rows are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from app.datasets.times import UNIT_NS, TimeUnit
from app.jobs.config import DataConfig

START_S = 1_700_000_000
SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Row:
    """One row: times in ns; group "" when there is none."""

    time: int
    label: int
    end: int | None = None
    group: str | int = ""


def table(num_rows: int = 100, *, start_s: int = START_S, step_s: int = 1, **columns: Any) -> pa.Table:
    """Rows at a steady pace with two features and labels 0, 1, 2, 3, 0, ...; None leaves a column out."""
    index = np.arange(num_rows)
    times = (start_s + index * step_s) * SECOND
    found: dict[str, Any] = {
        "timestamp": pa.array(times, pa.timestamp("ns", tz="UTC")),
        "label": pa.array(index % 4, pa.int8()),
        "a": pa.array(index, pa.float32()),
        "b": pa.array(-index, pa.float32()),
        **columns,
    }
    return pa.table({name: column for name, column in found.items() if column is not None})


def write(
    root: Path, name: str, rows: pa.Table, *, metadata: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Write a table below the root, with page checksums."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if metadata is not None:
        rows = rows.replace_schema_metadata({"saimp": json.dumps(metadata)})
    pq.write_table(rows, path, **{"write_page_checksum": True, **options})
    return path


@dataclass(frozen=True, slots=True)
class Case:
    """A random dataset: its files by name, in any order, and a configuration for it."""

    files: dict[str, list[Row]]
    config: DataConfig
    unit: TimeUnit
    is_plain: bool
    row_group: int
    has_statistics: bool
    batch_rows: int

    def write(self, root: Path) -> None:
        for name, rows in self.files.items():
            write(
                root,
                f"set/{name}.parquet",
                self._table(rows),
                row_group_size=self.row_group,
                write_statistics=self.has_statistics,
            )

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        kind = pa.int64() if self.is_plain else pa.timestamp(self.unit)
        scale = UNIT_NS[self.unit]
        columns: dict[str, Any] = {
            "timestamp": pa.array([row.time // scale for row in rows], kind),
            "label": pa.array([row.label for row in rows], pa.int16()),
            "x": pa.array([0.5] * len(rows), pa.float32()),
        }
        if rows[0].end is not None:
            ends = [None if row.end is None else row.end // scale for row in rows]
            columns["label_end"] = pa.array(ends, kind)
        if self.config.group:
            columns["group"] = pa.array([row.group for row in rows])
            if isinstance(rows[0].group, str) and self.row_group % 2:
                columns["group"] = columns["group"].dictionary_encode()
        return pa.table(columns)


_FRACTIONS = [
    {"train": 0.8, "val": 0.2, "test": 0.0},
    {"train": 0.7, "val": 0.1, "test": 0.2},
    {"train": 0.29, "val": 0.71, "test": 0.0},
    {"train": 0.57, "val": 0.29, "test": 0.14},
    {"train": 0.1, "val": 0.6, "test": 0.3},
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw rows with holes and equal times, in one or several groups, over files in any name order."""
    unit: TimeUnit = draw(st.sampled_from(["ns", "us", "ms", "s"]))
    scale = UNIT_NS[unit]
    values: list[str | int] = draw(st.sampled_from([[""], ["b", "a"], ["b", "a", "c"], [10, 9]]))
    has_end, max_label = draw(st.booleans()), draw(st.integers(1, 4))
    series = [draw(_series(value, scale, has_end, max_label)) for value in values]
    config = draw(_config(values != [""], scale, [row.time for rows in series for row in rows]))
    return Case(
        files=draw(_files(series)),
        config=config,
        unit=unit,
        is_plain=draw(st.booleans()),
        row_group=draw(st.integers(1, 20)),
        has_statistics=draw(st.booleans()),
        batch_rows=draw(st.sampled_from([1, 3, 8, 1000])),
    )


@st.composite
def _series(draw: st.DrawFn, group: str | int, scale: int, has_end: bool, max_label: int) -> list[Row]:
    num_rows = draw(st.integers(15, 70))
    steps = draw(st.lists(st.sampled_from([0, 1, 1, 1, 2, 5, 40]), min_size=num_rows, max_size=num_rows))
    labels = draw(st.lists(st.integers(0, max_label), min_size=num_rows, max_size=num_rows))
    ahead = draw(st.lists(st.sampled_from([0, 1, 3, 10, 60]), min_size=num_rows, max_size=num_rows))
    times = (START_S * SECOND // scale + draw(st.integers(0, 20)) + np.cumsum(steps)) * scale
    return [
        Row(int(time), label, int(time) + more * scale if has_end else None, group)
        for time, label, more in zip(times, labels, ahead, strict=True)
    ]


@st.composite
def _files(draw: st.DrawFn, series: list[list[Row]]) -> dict[str, list[Row]]:
    """Put groups into bundles, and each bundle's rows, in time order, into a few files."""
    bundles: dict[int, list[Row]] = {}
    for rows in series:
        bundles.setdefault(draw(st.integers(0, 1)), []).extend(rows)
    pieces = []
    for rows in bundles.values():
        ordered = sorted(rows, key=lambda row: row.time)
        cuts = sorted(draw(st.sets(st.integers(1, len(ordered) - 1), max_size=3)))
        for first, last in zip([0, *cuts], [*cuts, len(ordered)], strict=True):
            piece = ordered[first:last]
            # Inside a file groups may come one after the other.
            if draw(st.booleans()):
                piece = sorted(piece, key=lambda row: str(row.group))
            pieces.append(piece)
    names = draw(st.permutations([f"part-{i}" for i in range(len(pieces))]))
    return dict(zip(names, pieces, strict=True))


@st.composite
def _config(draw: st.DrawFn, has_groups: bool, scale: int, times: list[int]) -> DataConfig:
    unit_s = scale / SECOND
    seconds = st.sampled_from([0.0, 0.5 * unit_s, unit_s, 3 * unit_s, 12 * unit_s])
    if draw(st.booleans()):
        split: dict[str, Any] = draw(st.sampled_from(_FRACTIONS))
    else:
        picked = sorted(draw(st.sampled_from(times)) for _ in range(2))
        moments = [datetime.fromtimestamp(START_S, UTC) + _since(time) for time in picked]
        has_test = draw(st.booleans()) and moments[0] < moments[1]
        split = {"val_from": moments[0], "test_from": moments[1] if has_test else None}
    return DataConfig.model_validate(
        {
            "path": "set",
            "features": ["x"],
            "window": draw(st.sampled_from([1, 2, 3, 4, 8])),
            "stride": draw(st.sampled_from([1, 1, 2, 3])),
            "max_gap_s": draw(st.sampled_from([None, unit_s, 2.5 * unit_s, 5 * unit_s, 40 * unit_s])),
            "horizon_s": draw(st.none() | seconds),
            "embargo_s": draw(seconds),
            "group": "group" if has_groups else None,
            "split": split,
        }
    )


def _since(time: int) -> timedelta:
    return timedelta(microseconds=(time - START_S * SECOND) // 1000)
