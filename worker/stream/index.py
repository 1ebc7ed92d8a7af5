"""Where the rows of each group lie: what to read, in which order, and what is due after each read.

Shapes: E entries, one for each extent and group in it; X extents; G groups; L loads: extents that a part
needs, in the order they are read.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from app.datasets.schema import Dataset
from worker.stream.ahead import ReadAhead
from worker.stream.errors import StreamBudgetTooSmall
from worker.stream.files import Files
from worker.stream.layout import Extent, Layout, lay_out
from worker.stream.reader import Reader
from worker.stream.windows import GROUP_KEY, Ints, Windows

FOREVER = int(np.iinfo(np.int64).max)
MIB = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class GroupIndex:
    """The extents of a grouped dataset in content order, and the rows of each group in them.

    Of each entry: its extent, its group, its first row in the group, its number of rows, its first and last
    time, int64 [E], by extent and group.
    """

    layout: Layout
    extents: tuple[Extent, ...]
    extent_E: Ints
    group_E: Ints
    first_E: Ints
    count_E: Ints
    start_time_E: Ints
    end_time_E: Ints

    def entries(self, extent: int) -> slice:
        """Return the entries of one extent."""
        low, high = np.searchsorted(self.extent_E, [extent, extent + 1])
        return slice(int(low), int(high))

    def number(self, extent: Extent) -> int:
        """Return the place of an extent."""
        return bisect_left(self.extents, extent)

    def row_keys(self, extent: int, groups_R: Ints) -> Ints:
        """Return the key of each row of an extent, [R]: its group and its row in the group."""
        entries = self.entries(extent)
        order_R = np.argsort(groups_R, kind="stable")
        first_R = np.repeat(GROUP_KEY * self.group_E[entries] + self.first_E[entries], self.count_E[entries])
        within_R = np.arange(len(groups_R)) - np.repeat(
            np.cumsum(self.count_E[entries]) - self.count_E[entries], self.count_E[entries]
        )
        keys_R = np.empty_like(first_R)
        keys_R[order_R] = first_R + within_R
        return keys_R

    def loads(self, windows: Windows) -> Loads:
        """Return what the windows need, in the order of the first time in each."""
        first_key_E = GROUP_KEY * self.group_E + self.first_E
        is_touched_E = windows.next_end(first_key_E) - (windows.window - 1) < first_key_E + self.count_E
        needed = np.unique(self.extent_E[is_touched_E])
        starts_X, _ = self._bounds()
        order = needed[np.argsort(starts_X[needed], kind="stable")]
        return Loads(order, np.append(starts_X[order][1:], FOREVER))

    def peak_rows(self) -> int:
        """Return how many rows are held at once when everything is read: those whose turn has not come."""
        starts_X, ends_X = self._bounds()
        rows_X = np.array([self.layout.starts[b] - self.layout.starts[a] for a, b in self.extents], np.int64)
        order = np.argsort(starts_X, kind="stable")
        # An extent is through when the next one to load begins after its last time.
        through = np.searchsorted(np.append(starts_X[order][1:], FOREVER), ends_X[order], side="right")
        held = np.cumsum(rows_X[order])
        gone = np.bincount(np.minimum(through + 1, len(order)), rows_X[order], len(order) + 1)[:-1]
        return int((held - np.cumsum(gone)).max())

    def _bounds(self) -> tuple[Ints, Ints]:
        """Return the first and the last time of each extent, [X]."""
        first_X = np.searchsorted(self.extent_E, np.arange(len(self.extents)))
        starts_X = np.minimum.reduceat(self.start_time_E, first_X)
        return starts_X, np.maximum.reduceat(self.end_time_E, first_X)


@dataclass(frozen=True, slots=True, eq=False)
class Loads:
    """The extents a part needs, in load order [L]; once one is loaded, rows before `until_L` are due."""

    extents_L: Ints
    until_L: Ints


@lru_cache(maxsize=4)
def index_groups(dataset: Dataset, groups: tuple[str, ...], max_bytes: int, budget_bytes: int) -> GroupIndex:
    """Read the time and group columns once and index them.

    max_bytes: of an extent; extents are made smaller until the rows held at once fit `budget_bytes`.
    Raises StreamBudgetTooSmall when that cannot be.
    """
    while True:
        index = _read_index(dataset, groups, lay_out(dataset, max_bytes))
        row_bytes = index.layout.row_bytes
        held_bytes = index.peak_rows() * row_bytes
        if held_bytes <= budget_bytes or index.layout.slice_rows == 1:
            break
        max_bytes = min(index.layout.slice_rows // 2, index.layout.slice_rows * budget_bytes // held_bytes)
        max_bytes *= row_bytes
    if held_bytes > max(budget_bytes, row_bytes * 4096):
        raise StreamBudgetTooSmall(
            f"reading all groups in time order holds {held_bytes // row_bytes} rows, {held_bytes // MIB} MiB;"
            f" the stream may hold {budget_bytes // MIB} MiB",
            "Raise SAIMP_STREAM_BUDGET, or store the rows of all groups in time order.",
        )
    return index


def _read_index(dataset: Dataset, groups: tuple[str, ...], layout: Layout) -> GroupIndex:
    extents = tuple(layout.extents(0, lambda first, last: True))
    reader = Reader(dataset, layout, groups, Files(dataset), keys_only=True)
    columns: list[list[Ints]] = [[], [], [], [], [], []]
    rows_G = np.zeros(len(groups), np.int64)
    with closing(ReadAhead(reader.blocks(extents))) as blocks:
        for extent, block in enumerate(blocks):
            order_R = np.argsort(block.groups_R, kind="stable")
            group_E, place_E, count_E = np.unique(
                block.groups_R[order_R], return_index=True, return_counts=True
            )
            times_R = block.times_R[order_R]
            found = (
                np.full(len(group_E), extent),
                group_E,
                rows_G[group_E],
                count_E,
                np.minimum.reduceat(times_R, place_E),
                np.maximum.reduceat(times_R, place_E),
            )
            for column, values in zip(columns, found, strict=True):
                column.append(values)
            rows_G[group_E] += count_E
    return GroupIndex(layout, extents, *(np.concatenate(column) for column in columns))
