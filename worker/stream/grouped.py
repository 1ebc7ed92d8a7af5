"""Samples of a grouped dataset: blocks are read when their rows are due, and merged by time.

Shapes: L loads of the part, G groups.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.datasets.schema import Dataset
from app.datasets.split import SplitPlan
from worker.stream.ahead import ReadAhead
from worker.stream.batch import Batch
from worker.stream.block import Block
from worker.stream.checks import Checks
from worker.stream.files import Files
from worker.stream.index import GroupIndex, Loads, index_groups
from worker.stream.layout import Extent
from worker.stream.merge import Merge
from worker.stream.reader import Reader
from worker.stream.windows import Ints, Windows


@dataclass(frozen=True, slots=True, eq=False)
class _Marks:
    """Where each load finds the merge: samples given before it [L], rows given of each group [L, G]."""

    given_L: Ints
    sent_LG: Ints


class TimeOrder:
    """The windows of one part over all groups. The first use reads the time and group columns once."""

    def __init__(
        self,
        dataset: Dataset,
        plan: SplitPlan,
        windows: Windows,
        max_bytes: int,
        budget_bytes: int,
        *,
        verify_checksums: bool,
        zero_non_finite: bool,
    ) -> None:
        """max_bytes: of a block; budget_bytes: of the rows that are held for the merge.

        A row group that is read in slices stays open meanwhile: about 3 MiB more (a page, its buffers).
        """
        self._dataset, self._plan, self._windows = dataset, plan, windows
        self._max_bytes, self._budget_bytes = max_bytes, budget_bytes
        self._verify_checksums, self._zero_non_finite = verify_checksums, zero_non_finite
        self._files = Files(dataset)

    def batches(self, size: int, skip: int) -> Generator[Batch, None, None]:
        """Yield batches from sample `skip` on; the rows of each group just before it are read first."""
        index, loads = self._index, self._loads
        start, given, sent_G = 0, 0, np.zeros(len(self._plan.groups), np.int64)
        if skip:
            start = int(np.searchsorted(self._marks.given_L, skip, side="right")) - 1
            given, sent_G = int(self._marks.given_L[start]), self._marks.sent_LG[start]
        merge = Merge(self._windows, size, sent_G)
        before = self._still_held(start, sent_G)
        order = [*before, *range(start, len(loads.extents_L))]
        reader = Reader(self._dataset, index.layout, self._plan.groups, self._files, self._checks)
        extents = [index.extents[loads.extents_L[load]] for load in order]
        with closing(ReadAhead(reader.blocks(extents))) as blocks:
            for load, block in zip(order, blocks, strict=True):
                keys_R = index.row_keys(int(loads.extents_L[load]), block.groups_R)
                merge.load(keys_R, block.times_R, block.labels_R.numpy(), block.rows_RF)
                if load < start:
                    continue
                merge.find(int(loads.until_L[load]))
                if load == start:
                    merge.drop(skip - given)
                yield from merge.batches(is_last=load == order[-1])
                merge.trim()
        reader.check_unchanged()

    @cached_property
    def _index(self) -> GroupIndex:
        return index_groups(self._dataset, self._plan.groups, self._max_bytes, self._budget_bytes)

    @cached_property
    def _loads(self) -> Loads:
        return self._index.loads(self._windows)

    @cached_property
    def _checks(self) -> Checks:
        return Checks(
            self._dataset.features,
            self._plan.num_classes,
            len(self._index.layout),
            self._used,
            verify_checksums=self._verify_checksums,
            zero_non_finite=self._zero_non_finite,
        )

    @cached_property
    def _marks(self) -> _Marks:
        """Merge the keys alone, once: then any sample can be found without reading those before it."""
        index, loads = self._index, self._loads
        num_loads, num_groups = len(loads.extents_L), len(self._plan.groups)
        marks = _Marks(np.empty(num_loads, np.int64), np.empty((num_loads, num_groups), np.int64))
        merge = Merge(self._windows, 1, np.zeros(num_groups, np.int64))
        reader = Reader(self._dataset, index.layout, self._plan.groups, self._files, keys_only=True)
        extents = [index.extents[extent] for extent in loads.extents_L]
        with closing(ReadAhead(reader.blocks(extents))) as blocks:
            for load, block in enumerate(blocks):
                marks.given_L[load], marks.sent_LG[load] = merge.num_due, merge.sent_G
                keys_R = index.row_keys(int(loads.extents_L[load]), block.groups_R)
                merge.load(keys_R, block.times_R, block.labels_R.numpy(), block.rows_RF)
                merge.find(int(loads.until_L[load]))
                merge.drop(merge.num_due)
                merge.trim()
        return marks

    def _still_held(self, start: int, sent_G: Ints) -> list[int]:
        """Return the loads before `start` with rows that are still needed there."""
        index, loads = self._index, self._loads
        oldest_G = sent_G - (self._windows.window - 1)
        is_needed_E = index.first_E + index.count_E > oldest_G[index.group_E]
        needed = np.unique(index.extent_E[is_needed_E])
        return np.flatnonzero(np.isin(loads.extents_L[:start], needed)).tolist()

    def _used(self, extent: Extent, block: Block) -> NDArray[np.bool_]:
        return self._windows.is_used(self._index.row_keys(self._index.number(extent), block.groups_R))
