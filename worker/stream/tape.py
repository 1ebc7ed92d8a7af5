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
        window = self._window
        rows_R, places_B = union_rows(ends_B - (window - 1), window)
        first, num_rows = int(rows_R[0]), len(rows_R)
        is_dense = num_rows == len(ends_B) + window - 1
        self._load(first, first + 1)
        block = self._held[0]
        if first + num_rows - 1 == rows_R[-1] < block.stop:  # adjacent, and all in one block
            rows_RF = block.rows_RF[first - block.start : first - block.start + num_rows]
            labels_B = block.labels_R[torch.from_numpy(ends_B - block.start)]
        else:
            rows_RF = self._new(num_rows, block.rows_RF)
            labels_B = torch.empty(len(ends_B), dtype=torch.int64)
            del block
            self._copy(rows_R, ends_B, rows_RF, labels_B)
        return Batch(rows_RF, torch.from_numpy(places_B), labels_B, window, is_dense)

    def _copy(self, rows_R: Ints, ends_B: Ints, rows_RF: Tensor, labels_B: Tensor) -> None:
        """Copy these rows, and the labels of these ends, block by block; each is let go of when copied."""
        following = int(ends_B[-1]) - self._window + 2  # the first row that a later window may need
        done = 0
        while done < len(rows_R):
            row = int(rows_R[done])
            self._load(row, row + 1, min(row, following))
            block = next(block for block in self._held if row < block.stop)
            here = slice(done, int(np.searchsorted(rows_R, block.stop)))
            places_N = torch.from_numpy(rows_R[here] - block.start)
            torch.index_select(block.rows_RF, 0, places_N, out=rows_RF[here])
            here_B = slice(*np.searchsorted(ends_B, [row, block.stop]).tolist())
            labels_B[here_B] = block.labels_R[torch.from_numpy(ends_B[here_B] - block.start)]
            done = here.stop
            del block

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
