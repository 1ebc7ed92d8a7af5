"""A bounded sample of rows in stretches without holes, so that what follows a row is in it too.

Shapes: M rows of the sample, E elements of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.datasets.scan import Rows
from app.datasets.schema import Dataset
from app.datasets.values import decoded_row_bytes

MAX_ROWS = 1 << 16
MAX_BYTES = 1 << 25
STRETCHES = 32

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of one group follow one another inside a piece.

    values_ME: what is not finite is the column's mean; parts_M: 0 train, 1 val, 2 test;
    ends_M: when the label is known, in ns; pieces_M: which piece.
    """

    values_ME: Floats
    labels_M: Ints
    times_M: Ints
    ends_M: Ints
    parts_M: Ints
    pieces_M: Ints

    def __len__(self) -> int:
        return len(self.labels_M)

    def pairs(self, lag: int) -> Ints:
        """Rows t for which row t + lag lies in the same piece (lag may be negative)."""
        size = abs(lag)
        num = max(len(self) - size, 0)
        first = np.flatnonzero(self.pieces_M[len(self) - num :] == self.pieces_M[:num])
        return first if lag > 0 else first + size


class Sampler:
    """Collects rows at places chosen from the number of rows alone: all, or evenly spread stretches."""

    def __init__(self, dataset: Dataset) -> None:
        budget = max(1024, min(MAX_ROWS, MAX_BYTES // decoded_row_bytes(dataset.features)))
        if dataset.rows <= budget:
            self._starts, self._length = np.zeros(1, np.int64), dataset.rows
        else:
            self._length = budget // STRETCHES
            self._starts = np.linspace(0, dataset.rows - self._length, STRETCHES).astype(np.int64)
        self._before: dict[str, int] = {}
        rows = 0
        for file in dataset.files:
            self._before[file.name] = rows
            rows += file.rows
        self._pieces: dict[tuple[int, int], list[tuple[NDArray[np.generic], Ints, Ints, Ints, Ints]]] = {}

    def add(self, lane: int, rows: Rows, ends_N: Ints, parts_N: Ints) -> None:
        """Offer rows of one group."""
        assert rows.features_NE is not None
        place = rows.at_N + self._before[rows.file]
        stretch = np.searchsorted(self._starts, place, side="right") - 1
        inside = place < self._starts[stretch] + self._length
        for number in np.unique(stretch[inside]):
            chosen = inside & (stretch == number)
            self._pieces.setdefault((int(number), lane), []).append(
                (
                    rows.features_NE[chosen].astype(np.float64),
                    rows.labels_N[chosen],
                    rows.times_N[chosen],
                    ends_N[chosen],
                    parts_N[chosen],
                )
            )

    def take(self) -> Sample:
        """Return what was collected."""
        parts = [piece for key in sorted(self._pieces) for piece in self._pieces[key]]
        if not parts:
            none = np.empty(0, np.int64)
            return Sample(np.empty((0, 0)), none, none, none, none, none)
        values = np.concatenate([part[0] for part in parts]).astype(np.float64, copy=False)
        numbers = [
            np.full(sum(len(part[1]) for part in self._pieces[key]), number, np.int64)
            for number, key in enumerate(sorted(self._pieces))
        ]
        labels, times, ends, which = (np.concatenate([part[i] for part in parts]) for i in range(1, 5))
        return Sample(_filled(values), labels, times, ends, which, np.concatenate(numbers))


def _filled(values_ME: Floats) -> Floats:
    finite = np.isfinite(values_ME)
    if finite.all():
        return values_ME
    counts = np.maximum(finite.sum(axis=0), 1)
    means = np.where(finite, values_ME, 0.0).sum(axis=0) / counts
    return np.where(finite, values_ME, means)
