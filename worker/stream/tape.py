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
from worker.stream.memory import Memory
from worker.stream.windows import Ints, union_rows

# Batches whose views are made in one call; more would only hold more views.
VIEWS_AT_ONCE = 512


class Tape:
    """The rows of an ungrouped dataset: a batch inside one block is a view, others copy their rows once.

    A block may begin with the last rows of the one before: then a batch has a choice, and fewer cross.
    """

    def __init__(
        self, blocks: Iterator[Block], window: int, stride: int, memory: Memory | None = None
    ) -> None:
        """memory: for the rows of a batch that are copied; none = new memory each time."""
        self._memory = memory
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
            block = self._block_at(first, reach)
            count = min((block.stop - first - reach) // step + 1, num_batches, VIEWS_AT_ONCE)
            if count < 1:  # the next one crosses the border: copy the rows of all that do
                count = min(-((first - block.stop) // step), num_batches)
                source_RF, source_R = self._seam(
                    first, first + (count - 1) * step + reach, first + count * step
                )
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
        for block, part in self._parts(int(rows_R[0]), int(rows_R[-1]) + 1):
            rows += _taken(block.rows_RF, rows_R - block.start, part)
            labels += _taken(block.labels_R, ends_B - block.start, part)
        rows_RF = rows[0] if len(rows) == 1 else torch.cat(rows, out=self._new(sum(map(len, rows)), rows[0]))
        labels_B = labels[0] if len(labels) == 1 else torch.cat(labels)
        is_dense = len(rows_R) == len(ends_B) + self._window - 1
        return Batch(rows_RF, torch.from_numpy(places_B), labels_B, self._window, is_dense)

    def _seam(self, first: int, last: int, following: int) -> tuple[Tensor, Tensor]:
        """Copy rows first .. last - 1 and their labels out of the blocks they lie in, block by block.

        following: the first row that is needed after these; blocks before it are let go of when copied.
        """
        rows_RF: Tensor | None = None
        labels_R = torch.empty(last - first, dtype=torch.int64)
        row = first
        while row < last:
            self._load(row, row + 1, min(row, following))
            block = next(block for block in self._held if row < block.stop)
            if rows_RF is None:
                rows_RF = self._new(last - first, block.rows_RF)
            stop = min(block.stop, last)
            rows_RF[row - first : stop - first] = block.rows_RF[row - block.start : stop - block.start]
            labels_R[row - first : stop - first] = block.labels_R[row - block.start : stop - block.start]
            row = stop
            del block
        assert rows_RF is not None
        return rows_RF, labels_R

    def _new(self, num_rows: int, like_RF: Tensor) -> Tensor:
        """Return memory for rows of this shape."""
        num_bytes = num_rows * like_RF[0].nbytes
        if self._memory is None or num_bytes > self._memory.num_bytes:
            return torch.empty(num_rows, *like_RF.shape[1:])
        lent = self._memory.take()[:num_bytes].view(np.float32)
        return torch.from_numpy(lent).view(num_rows, *like_RF.shape[1:])

    def _parts(self, first: int, last: int) -> Iterator[tuple[Block, slice]]:
        """Cut rows first .. last - 1, which are loaded, at the borders of blocks."""
        for block in self._held:
            if first < min(block.stop, last):
                yield block, slice(first - block.start, min(block.stop, last) - block.start)
                first = block.stop

    def _block_at(self, row: int, num_rows: int) -> Block:
        """Return a block with this row, if possible with all the rows from it on."""
        self._load(row, row + 1)
        while self._held[0].stop < row + num_rows:
            self._load(row, self._held[0].stop + 1)
            if self._held[1].start > row:
                break
            self._held.popleft()
        return self._held[0]

    def _load(self, first: int, last: int, needed: int | None = None) -> None:
        """Hold the blocks of rows first .. last - 1; let go of those before `needed` (null: `first`)."""
        needed = first if needed is None else needed
        while self._held and self._held[0].stop <= needed:
            self._held.popleft()
        while not self._held or self._held[-1].stop < last:
            block = next(self._blocks)
            if block.stop > needed:
                self._held.append(block)


def _taken(block_R: Tensor, rows_N: Ints, part: slice) -> list[Tensor]:
    """Return those of the sorted rows that lie in a part of the block: a view if adjacent, else a copy."""
    low, high = np.searchsorted(rows_N, [part.start, part.stop])
    if low == high:
        return []
    inside_N = rows_N[low:high]
    first, last = int(inside_N[0]), int(inside_N[-1])
    if last - first + 1 == len(inside_N):
        return [block_R[first : last + 1]]
    return [block_R.index_select(0, torch.from_numpy(inside_N))]
