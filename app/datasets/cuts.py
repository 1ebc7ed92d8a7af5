"""The instants that cut a dataset in time, found by rank in bounded memory.

One streamed pass keeps (min, max, count) of spans of row groups; then only the spans that straddle the
wanted rank are read again. Nothing is kept for a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from math import floor

import numpy as np
from numpy.typing import NDArray

from app.datasets.errors import DataChanged
from app.datasets.parquet import read_columns
from app.datasets.schema import DataFile, Dataset
from app.datasets.times import Times, as_ns, instant_ns, raw_times
from app.errors import shown
from app.jobs.config import FractionSplit, Split

# Rows of a span; values held at once while a rank is narrowed down, and bins of one narrowing.
SPAN_ROWS = 1 << 17
GATHER_VALUES = 1 << 18
BINS = 1 << 12


@dataclass(frozen=True, slots=True)
class Span:
    """Row groups of one file that are read together. first_row: in the file."""

    file: DataFile
    row_groups: range
    first_row: int


class Survey:
    """The times of a dataset: bounds of each span, and queries by rank."""

    def __init__(self, dataset: Dataset, deadline: float | None = None) -> None:
        """Read the timestamp column once. Raises BadTimestamp, PreflightTimeout."""
        self._dataset, self._deadline = dataset, deadline
        self._spans = [span for file in dataset.files for span in _spans(file)]
        bounds = [self._bounds(span) for span in self._spans]
        low, high, count = np.array(bounds, dtype=np.int64).reshape(-1, 3).T
        self._low, self._high, self._count = low, high, count

    def value_at(self, rank: int) -> int:
        """Return the rank-th smallest time, from 0."""
        low = _first_reaching(self._low, self._count, rank)
        high = _first_reaching(self._high, self._count, rank)
        inside = (self._low <= high) & (self._high >= low)
        num_values = int(self._count[inside].sum())
        while num_values > GATHER_VALUES and low < high:
            width = (high - low) // BINS + 1
            below = int(self._count[self._high < low].sum())
            counts = np.zeros(BINS, dtype=np.int64)
            for times in self._read(inside):
                below += int(np.count_nonzero(times < low))
                within = times[(times >= low) & (times <= high)]
                counts += np.bincount((within - low) // width, minlength=BINS)
            place = int(np.searchsorted(np.cumsum(counts), rank - below, side="right"))
            low, high = low + place * width, min(high, low + (place + 1) * width - 1)
            num_values = int(counts[place])
            inside = (self._low <= high) & (self._high >= low)
        if low == high:
            return low
        below = int(self._count[self._high < low].sum())
        gathered = []
        for times in self._read(inside):
            below += int(np.count_nonzero(times < low))
            gathered.append(times[(times >= low) & (times <= high)])
        values = np.concatenate(gathered)
        return int(np.partition(values, rank - below)[rank - below])

    def next_after(self, value: int) -> int | None:
        """Return the smallest time after `value`, or None."""
        later = self._low[self._low > value]
        best = int(later.min()) if later.size else None
        for times in self._read((self._low <= value) & (self._high > value)):
            after = times[times > value]
            if after.size and (best is None or after.min() < best):
                best = int(after.min())
        return best

    def _read(self, chosen: NDArray[np.bool_]) -> Iterator[Times]:
        for index in np.flatnonzero(chosen):
            yield from self._times(self._spans[index])

    def _bounds(self, span: Span) -> tuple[int, int, int]:
        found = [(int(t.min()), int(t.max()), len(t)) for t in self._times(span)]
        num_rows = sum(rows for _, _, rows in found)
        expected = sum(span.file.row_groups[group] for group in span.row_groups)
        if num_rows != expected:
            raise DataChanged(
                f"{shown(span.file.name)} has {num_rows:,} rows where its footer claimed {expected:,}:"
                " it changed while it was read, or is damaged.",
                "Submit again; if it stays, write the file again.",
            )
        return min(low for low, _, _ in found), max(high for _, high, _ in found), num_rows

    def _times(self, span: Span) -> Iterator[Times]:
        name, column = span.file.name, self._dataset.timestamp
        batches = read_columns(
            span.file.path,
            name,
            [column],
            row_groups=span.row_groups,
            first_row=span.first_row,
            deadline=self._deadline,
        )
        for batch in batches:
            raw = raw_times(batch.columns[column], column, name, batch.first_row)
            yield as_ns(
                raw,
                self._dataset.timestamp_unit,
                column,
                name,
                batch.first_row,
                is_detected=self._dataset.is_unit_detected,
            )


def find_cuts(survey: Survey, num_rows: int, split: Split) -> tuple[int | None, int | None]:
    """Return the first row time of validation and of test; None where no row is left for it.

    Fractions are decimals as written: a cut is at row floor(fraction x rows), moved forward past equal times.
    """
    if isinstance(split, FractionSplit):
        train, val = Decimal(repr(split.train)), Decimal(repr(split.val))
        has_test = split.test > 0
        ranks = [floor(train * num_rows), floor((train + val) * num_rows) if has_test else None]
        first, second = (None if rank is None else cut_at(survey, rank, num_rows) for rank in ranks)
        return first, second
    starts = [split.val_from, split.test_from]
    first, second = (None if at is None else survey.next_after(instant_ns(at) - 1) for at in starts)
    return first, second


def cut_at(survey: Survey, row: int, num_rows: int) -> int | None:
    """Return the first time of a part that begins at a row, moved past equal times; None beyond the end."""
    # The smallest time after row - 1's: that is row's own, or the first one past a run of equal times.
    if row > num_rows:
        return None
    return survey.next_after(-1) if row == 0 else survey.next_after(survey.value_at(row - 1))


def _first_reaching(bounds: Times, counts: Times, rank: int) -> int:
    """Return the smallest bound up to which more than `rank` rows lie in spans with such a bound."""
    order = np.argsort(bounds, kind="stable")
    return int(bounds[order][np.searchsorted(np.cumsum(counts[order]), rank, side="right")])


def _spans(file: DataFile) -> Iterator[Span]:
    """Join neighbouring row groups up to SPAN_ROWS; a call costs as much as some thousand rows."""
    first, rows, at = 0, 0, 0
    for index, size in enumerate(file.row_groups):
        if rows and rows + size > SPAN_ROWS:
            yield Span(file, range(first, index), at)
            first, at, rows = index, at + rows, 0
        rows += size
    if rows:
        yield Span(file, range(first, len(file.row_groups)), at)
