"""Rows in time order, block by block, as one tape that is read forward.

Shapes: R rows, B windows, T rows in a window, n batches, F... the shape of one row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from worker.stream.batch import Batch
from worker.stream.block import Block
from worker.stream.windows import Ints, union_rows

# Batches whose views are made in one call; more would only hold more views.
VIEWS_AT_ONCE = 512


class Tape:
    """The rows of an ungrouped dataset: a batch inside one block is a view, others copy their rows once."""

    def __init__(self, blocks: Iterator[Block], window: int, stride: int) -> None:
        self._blocks, self._window, self._stride = blocks, window, stride
        self._held: deque[Block] = deque()

    def series(self, end: int, num_batches: int, size: int) -> Iterator[Batch]:
        """Yield consecutive batches of `size` windows on one grid; `end` is the first window's last row.

        The windows of a batch overlap or touch (stride <= T), or there is one in each.
        """
        window, stride = self._window, self._stride
        step = size * stride  # rows from batch to batch
        reach = (size - 1) * stride + window  # rows of a batch
        starts_B = torch.arange(size) * stride
        is_dense = stride == 1 or size == 1
        first = end - window + 1
        while num_batches:
            block = self._block_at(first)
            count = min((block.stop - first - reach) // step + 1, num_batches, VIEWS_AT_ONCE)
            if count < 1:  # the next one crosses the border: copy the rows of all that do
                count = min(-((first - block.stop) // step), num_batches)
                source_RF, source_R = self._seam(first, first + (count - 1) * step + reach)
            else:
                source_RF = block.rows_RF[first - block.start :]
                source_R = block.labels_R[first - block.start :]
            strides = source_RF.stride()
            rows_nRF = source_RF.as_strided(
                (count, reach, *source_RF.shape[1:]), (step * strides[0], *strides)
            )
            labels_nB = source_R[window - 1 :].as_strided((count, size), (step, stride))
            # One call makes the views of many batches: slicing them one by one costs more than the scan.
            for rows_RF, labels_B in zip(rows_nRF.unbind(), labels_nB.unbind(), strict=True):
                yield Batch(rows_RF, starts_B, labels_B, window, is_dense)
            # Before the next blocks are read: what is named here would stay in memory.
            del block, source_RF, source_R, rows_nRF, labels_nB, rows_RF, labels_B
            num_batches -= count
            first += count * step

    def gather(self, ends_B: Ints) -> Batch:
        """Return the batch of the windows that end at these rows, in rising order."""
        rows_R, places_B = union_rows(ends_B - (self._window - 1), self._window)
        self._load(int(rows_R[0]), int(rows_R[-1]) + 1)
        rows: list[Tensor] = []
        labels: list[Tensor] = []
        for block in self._held:
            rows += _taken(block.rows_RF, rows_R - block.start, len(block))
            labels += _taken(block.labels_R, ends_B - block.start, len(block))
        rows_RF = rows[0] if len(rows) == 1 else torch.cat(rows)
        labels_B = labels[0] if len(labels) == 1 else torch.cat(labels)
        is_dense = len(rows_R) == len(ends_B) + self._window - 1
        return Batch(rows_RF, torch.from_numpy(places_B), labels_B, self._window, is_dense)

    def _seam(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Copy rows first .. last - 1 and their labels out of the blocks they lie in."""
        self._load(first, last)
        parts = [(block, slice(max(first - block.start, 0), last - block.start)) for block in self._held]
        rows_RF = torch.cat([block.rows_RF[part] for block, part in parts])
        return rows_RF, torch.cat([block.labels_R[part] for block, part in parts])

    def _block_at(self, row: int) -> Block:
        self._load(row, row + 1)
        return self._held[0]

    def _load(self, first: int, last: int) -> None:
        """Hold the blocks of rows first .. last - 1; let go of those before."""
        while self._held and self._held[0].stop <= first:
            self._held.popleft()
        while not self._held or self._held[-1].stop < last:
            block = next(self._blocks)
            if block.stop > first:
                self._held.append(block)


def _taken(block_R: Tensor, rows_N: Ints, length: int) -> list[Tensor]:
    """Return those of the sorted rows that the block holds: a view if they are adjacent, else a copy."""
    low, high = np.searchsorted(rows_N, [0, length])
    if low == high:
        return []
    inside_N = rows_N[low:high]
    first, last = int(inside_N[0]), int(inside_N[-1])
    if last - first + 1 == len(inside_N):
        return [block_R[first : last + 1]]
    return [block_R.index_select(0, torch.from_numpy(inside_N))]
