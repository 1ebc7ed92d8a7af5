"""How a dataset is cut into units of reading: row groups, and slices of those that are too large to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from app.datasets.schema import Dataset, Features

# Row groups are read together up to this size: a read call costs as much as decoding some hundred KiB.
SMALL_BYTES = 1 << 20

Extent = tuple[int, int]  # units first .. last - 1, of one file


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """U units over all files, in content order. Rows are counted over the whole dataset, from 0.

    starts: first row of each unit, and the number of rows at the end, int64 [U + 1];
    files, row_groups: int64 [U]; offsets: rows of its row group before each unit, int64 [U];
    is_slice: the unit is a part of a row group, bool [U];
    file_starts: first row of each file, int64; slice_rows: rows of a slice; row_bytes: one row, decoded.
    """

    starts: NDArray[np.int64]
    files: NDArray[np.int64]
    row_groups: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_slice: NDArray[np.bool_]
    file_starts: NDArray[np.int64]
    slice_rows: int
    row_bytes: int

    def __len__(self) -> int:
        return len(self.files)

    def unit_at(self, row: int) -> int:
        """Return the unit that holds a row."""
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def extents(self, first_row: int, is_needed: Callable[[int, int], bool]) -> Iterator[Extent]:
        """Yield what to read from `first_row` on, in row order; small neighbours together.

        is_needed: of first and last + 1 row of a unit; others are not read.
        """
        small_rows = SMALL_BYTES // self.row_bytes
        unit = self.unit_at(first_row)
        while unit < len(self):
            last = unit + 1
            if is_needed(int(self.starts[unit]), int(self.starts[last])):
                while self._joins(unit, last, small_rows) and is_needed(
                    int(self.starts[last]), int(self.starts[last + 1])
                ):
                    last += 1
                yield unit, last
            unit = last

    def _joins(self, first: int, unit: int, small_rows: int) -> bool:
        return bool(
            unit < len(self)
            and self.files[unit] == self.files[first]
            and not self.is_slice[first]
            and not self.is_slice[unit]
            and self.starts[unit + 1] - self.starts[first] <= small_rows
        )


def lay_out(dataset: Dataset, max_bytes: int) -> Layout:
    """Cut a dataset into units of at most `max_bytes` decoded, at least one row each."""
    row_bytes = decoded_row_bytes(dataset.features)
    slice_rows = max(1, max_bytes // row_bytes)
    rows_G = np.array([rows for file in dataset.files for rows in file.row_groups], dtype=np.int64)
    groups_per_file = [len(file.row_groups) for file in dataset.files]
    file_G = np.repeat(np.arange(len(dataset.files)), groups_per_file)
    index_G = np.concatenate([np.arange(count) for count in groups_per_file] or [np.arange(0)])

    units_G = -(-rows_G // slice_rows)  # an empty row group has none
    unit_group = np.repeat(np.arange(len(rows_G)), units_G)
    nth = np.arange(len(unit_group)) - np.repeat(np.cumsum(units_G) - units_G, units_G)
    offsets = nth * slice_rows
    starts_G = np.cumsum(rows_G) - rows_G
    return Layout(
        starts=np.append(starts_G[unit_group] + offsets, rows_G.sum()),
        files=file_G[unit_group],
        row_groups=index_G[unit_group],
        offsets=offsets,
        is_slice=units_G[unit_group] > 1,
        file_starts=np.cumsum([0, *(file.rows for file in dataset.files)])[:-1],
        slice_rows=slice_rows,
        row_bytes=row_bytes,
    )


def decoded_row_bytes(features: Features) -> int:
    """Return the memory of decoding one row: as Arrow holds it, and its copies as float32."""
    elements, stored = prod(features.shape), np.dtype(features.dtype)
    copies = int(stored != np.float32)
    if features.layout == "columns":
        copies = 2  # stacked, then transposed
    return int(elements * (stored.itemsize + 4 * copies))
