"""Samples of an ungrouped dataset: rows are read in row order, which is time order."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

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
from worker.stream.reader import Reader
from worker.stream.tape import Tape
from worker.stream.windows import Ints, Windows


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
        self._layout, self._files = lay_out(dataset, max_bytes), Files(dataset)
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
        first_row = int(windows.firsts_W[run]) + done * windows.stride - windows.window + 1
        reader = Reader(self._dataset, self._layout, self._groups, self._files, self._checks)
        extents = self._layout.extents(first_row, windows.touches)
        with closing(ReadAhead(reader.blocks(extents))) as blocks:
            yield from _cut(Tape(blocks, windows.window, windows.stride), windows, run, done, size)
        reader.check_unchanged()

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
