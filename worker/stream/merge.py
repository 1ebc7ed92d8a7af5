"""The samples of all groups in one order: by their last row's time, then by group.

Shapes: N live rows, B windows of a batch, R rows of a batch, G groups, T rows in a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.stream.batch import Batch
from worker.stream.windows import GROUP_KEY, Ints, Windows, union_rows


class _Rows(NamedTuple):
    """Live rows by key, each with its time, its label and where it is held: piece, row in it; int64 [N]."""

    keys: Ints
    times: Ints
    labels: Ints
    pieces: Ints
    places: Ints

    def take(self, which: NDArray[np.bool_] | Ints) -> _Rows:
        return _Rows(*(column[which] for column in self))


class Merge:
    """Merges the groups of blocks that are loaded one by one, and cuts the samples into batches.

    A row is live until no window that is still to come holds it. Blocks are kept whole while rows of them are
    due, then only the rows that later windows need.
    """

    def __init__(self, windows: Windows, size: int, sent_G: Ints) -> None:
        """size: windows of a batch; sent_G: rows of each group whose windows were given before."""
        self._windows, self._size = windows, size
        self.sent_G = sent_G.copy()
        self.num_due = 0  # samples found so far
        self._rows = _Rows(*(np.empty(0, np.int64) for _ in _Rows._fields))
        self._pieces: dict[int, Tensor] = {}
        self._next_piece = 0
        self._largest = 0  # rows of the largest piece
        self._ends = np.empty(0, np.int64)  # samples found, not given: places in _rows of their last rows

    def load(self, keys_R: Ints, times_R: Ints, labels_R: Ints, rows_RF: Tensor) -> None:
        """Add the rows of a block. Blocks may come in any order; rows are found by their keys."""
        is_live_R = keys_R % GROUP_KEY >= self._oldest(keys_R)
        places_R = np.flatnonzero(is_live_R)
        fresh = _Rows(
            keys_R[places_R],
            times_R[places_R],
            labels_R[places_R],
            np.full(len(places_R), self._next_piece),
            places_R,
        )
        joined = _Rows(*(np.concatenate(pair) for pair in zip(self._rows, fresh, strict=True)))
        order = np.argsort(joined.keys, kind="stable")
        moved = np.empty_like(order)
        moved[order] = np.arange(len(order))
        self._ends = moved[self._ends]
        self._rows = joined.take(order)
        self._pieces[self._next_piece] = rows_RF
        self._next_piece += 1
        self._largest = max(self._largest, len(rows_RF))

    def find(self, until: int) -> None:
        """Put the samples whose last row is before `until` in order, behind those already found."""
        keys, times = self._rows.keys, self._rows.times
        is_due = (keys % GROUP_KEY >= self.sent_G[keys // GROUP_KEY]) & (times < until)
        due = np.flatnonzero(is_due)
        ends = due[self._windows.next_end(keys[due]) == keys[due]]
        # Keys rise with the group and, inside it, with the row: equal times stay in file order.
        ends = ends[np.lexsort((keys[ends], times[ends]))]
        self.num_due += len(ends)
        self._ends = np.concatenate([self._ends, ends])
        np.maximum.at(self.sent_G, keys[due] // GROUP_KEY, keys[due] % GROUP_KEY + 1)

    def drop(self, count: int) -> None:
        """Pass over the next samples found."""
        self._ends = self._ends[count:]

    def batches(self, *, is_last: bool) -> Iterator[Batch]:
        """Yield the samples found as batches; is_last: a short one too."""
        given, total = 0, len(self._ends)
        stop = total if is_last else total - total % self._size
        while given < stop:
            yield self._gather(self._ends[given : given + self._size])
            given += self._size
        self._ends = self._ends[given:]

    def trim(self) -> None:
        """Let go of the rows that no later window holds."""
        keys = self._rows.keys
        is_live = keys % GROUP_KEY >= self._oldest(keys)
        if len(self._ends):
            is_live[union_rows(self._ends - (self._windows.window - 1), self._windows.window)[0]] = True
        self._ends = (np.cumsum(is_live) - 1)[self._ends]
        self._rows = self._rows.take(is_live)
        self._release()

    def _oldest(self, keys_N: Ints) -> Ints:
        """Return the first row of each key's group that a window to come may hold, [N]."""
        return self.sent_G[keys_N // GROUP_KEY] - (self._windows.window - 1)

    def _release(self) -> None:
        """Drop pieces without live rows; copy those of finished pieces together when that frees much."""
        rows = self._rows
        pieces, live = np.unique(rows.pieces, return_counts=True)
        is_waiting = rows.keys % GROUP_KEY >= self.sent_G[rows.keys // GROUP_KEY]
        waiting = np.unique(rows.pieces[is_waiting])
        self._pieces = {piece: self._pieces[piece] for piece in pieces.tolist()}
        is_finished = ~np.isin(pieces, waiting)
        held = sum(len(self._pieces[piece]) for piece in pieces[is_finished].tolist())
        needed = int(live[is_finished].sum())
        if held > 2 * needed + self._largest:
            where = np.flatnonzero(np.isin(rows.pieces, pieces[is_finished]))
            compact_RF = self._collect(where)
            for piece in pieces[is_finished].tolist():
                del self._pieces[piece]
            self._pieces[self._next_piece] = compact_RF
            rows.pieces[where], rows.places[where] = self._next_piece, np.arange(len(where))
            self._next_piece += 1

    def _gather(self, ends_B: Ints) -> Batch:
        window = self._windows.window
        rows_R, starts_B = union_rows(ends_B - (window - 1), window)
        is_dense = len(rows_R) == len(ends_B) + window - 1 and bool((np.diff(starts_B) > 0).all())
        labels_B = torch.from_numpy(self._rows.labels[ends_B])
        return Batch(self._collect(rows_R), torch.from_numpy(starts_B), labels_B, window, is_dense)

    def _collect(self, which_R: Ints) -> Tensor:
        """Return live rows: a view when they are adjacent in one piece, else a copy."""
        pieces_R, places_R = self._rows.pieces[which_R], self._rows.places[which_R]
        borders = [0, *(np.flatnonzero(np.diff(pieces_R)) + 1).tolist(), len(which_R)]
        parts = [
            _selected(self._pieces[int(pieces_R[low])], places_R[low:high]) for low, high in pairwise(borders)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _selected(rows_RF: Tensor, places_N: Ints) -> Tensor:
    first = int(places_N[0])
    if int(places_N[-1]) - first + 1 == len(places_N) and bool((np.diff(places_N) == 1).all()):
        return rows_RF[first : first + len(places_N)]
    return rows_RF.index_select(0, torch.from_numpy(places_N))
