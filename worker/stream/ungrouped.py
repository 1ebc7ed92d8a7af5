"""Samples of an ungrouped dataset: rows are read in row order, which is time order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from math import prod

import numpy as np
from numpy.typing import NDArray

from app.datasets.schema import Dataset
from app.datasets.split import SplitPlan
from worker.stream.ahead import ReadAhead
from worker.stream.batch import Batch
from worker.stream.block import Block
from worker.stream.checks import Checks
from worker.stream.files import Files
from worker.stream.layout import Extent, lay_out
from worker.stream.memory import Memory
from worker.stream.reader import Reader
from worker.stream.tape import Tape
from worker.stream.windows import Ints, Windows

LARGE_BYTES = 1 << 20


class RowOrder:
    """The windows of one part over the rows of an ungrouped dataset."""

    def __init__(
        self,
        dataset: Dataset,
        plan: SplitPlan,
        windows: Windows,
        max_bytes: int,
        *,
        verify_checksums: bool,
        zero_non_finite: bool,
    ) -> None:
        """max_bytes: of a block."""
        self._dataset, self._groups, self._windows = dataset, plan.groups, windows
        self._layout, self._files = lay_out(dataset, max_bytes), Files(dataset, max_bytes)
        self._checks = Checks(
            dataset.features,
            plan.num_classes,
            len(self._layout),
            self._used,
            verify_checksums=verify_checksums,
            zero_non_finite=zero_non_finite,
        )

    def batches(self, size: int, skip: int) -> Generator[Batch, None, None]:
        """Yield batches from sample `skip` on; the first read is the row group of its first row."""
        windows = self._windows
        run = int(np.searchsorted(windows.before_W, skip, side="right")) - 1
        done = skip - int(windows.before_W[run])  # windows of that run
        reader = Reader(self._dataset, self._layout, self._groups, self._files, self._checks)
        extents = self._layout.extents(windows.first_row(skip), windows.touches)
        pieces = reader.pieces(extents, partial(_whole_batches, windows, size, skip))
        with closing(ReadAhead(pieces)) as ahead:
            tape = Tape(chain.from_iterable(ahead), windows.window, windows.stride, self._memory(size))
            yield from _cut(tape, windows, run, done, size)
        reader.check_unchanged()

    def _memory(self, size: int) -> Memory | None:
        """Return memory for batches so large that the system would give new pages for each."""
        reach = (size - 1) * min(self._windows.stride, self._windows.window) + self._windows.window
        num_bytes = reach * 4 * prod(self._dataset.features.shape)
        return Memory(num_bytes) if num_bytes > LARGE_BYTES else None

    def _used(self, extent: Extent, block: Block) -> NDArray[np.bool_]:
        return self._windows.is_used(np.arange(block.start, block.stop))


def _cut(tape: Tape, windows: Windows, run: int, done: int, size: int) -> Iterator[Batch]:
    """Cut the runs into batches: whole batches inside a run in series, the others gathered over runs."""
    stride = windows.stride
    has_series = stride <= windows.window or size == 1
    pending: list[Ints] = []
    missing = size  # windows until the pending batch is full
    for first, count in zip(windows.firsts_W[run:].tolist(), windows.counts_W[run:].tolist(), strict=True):
        end, left = first + done * stride, count - done
        done = 0
        while left:
            if has_series and missing == size and left >= size:
                taken = left - left % size
                yield from tape.series(end, taken // size, size)
            else:
                taken = min(left, missing)
                pending.append(np.arange(end, end + taken * stride, stride))
                missing -= taken
                if not missing:
                    yield tape.gather(np.concatenate(pending))
                    pending, missing = [], size
            end += taken * stride
            left -= taken
    if pending:
        yield tape.gather(np.concatenate(pending))


def _whole_batches(
    windows: Windows, size: int, skip: int, first: int, last: int, num_rows: int
) -> Iterator[tuple[int, int]]:
    """Cut rows first .. last - 1 into pieces of at most `num_rows`, each with the rows of whole batches.

    A piece begins with the first row of a batch; the one before ends with the last row of the batch before:
    they share up to T - stride rows. A batch that is larger than a piece is cut anywhere.
    """
    while last - first > num_rows:
        stop = first + num_rows
        sample = windows.last_before(stop - windows.window)
        begin = windows.first_row(sample - (sample - skip) % size) if sample >= skip else first
        if begin > first:
            yield first, max(begin, begin + windows.window - windows.stride)
            first = begin
        else:
            yield first, stop
            first = stop
    yield first, last
