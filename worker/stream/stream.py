"""The stream: the samples of one part of the split, in time order, as batches."""

from __future__ import annotations

from collections.abc import Generator

from app.datasets.schema import Dataset
from app.datasets.split import PartName, SplitPlan
from worker.stream.batch import Batch
from worker.stream.grouped import TimeOrder
from worker.stream.ungrouped import RowOrder
from worker.stream.windows import Windows

DEFAULT_BUDGET_BYTES = 512 * 2**20
# Blocks alive at once: two in use, one ready, one being read (compressed, decoded, converted).
BLOCKS_IN_BUDGET = 8
# Larger blocks are not faster: they leave the caches and hold more memory.
MAX_BLOCK_BYTES = 16 * 2**20


class Stream:
    """The windows of one part, ordered by their last row's time, then by group.

    The composition of a batch depends on the plan, its size and its position alone: not on how files, row
    groups or the memory budget cut the rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: SplitPlan,
        part: PartName,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        verify_checksums: bool = False,
    ) -> None:
        """budget_bytes: memory of the blocks in flight; verify_checksums: of pages, when first read."""
        self._windows = Windows(plan.parts[part], plan.window, plan.stride)
        max_bytes = min(budget_bytes // BLOCKS_IN_BUDGET, MAX_BLOCK_BYTES)
        self._order: RowOrder | TimeOrder
        if dataset.group is None:
            self._order = RowOrder(dataset, plan, self._windows, max_bytes, verify_checksums=verify_checksums)
        else:
            self._order = TimeOrder(
                dataset, plan, self._windows, max_bytes, budget_bytes // 2, verify_checksums=verify_checksums
            )

    @property
    def num_windows(self) -> int:
        """How many samples the part has."""
        return self._windows.total

    def __len__(self) -> int:
        return self.num_windows

    def batches(self, size: int, *, skip: int = 0) -> Generator[Batch, None, None]:
        """Yield consecutive batches of `size` samples from sample `skip` on; the last may be short.

        Starting anywhere reads what the first batch needs, nothing before it. Closing the generator ends its
        thread and closes its files.
        Raises DataError for what is wrong with the data, where it is first read.
        """
        assert size >= 1, "a batch has at least one sample"
        assert 0 <= skip <= self.num_windows, "skip counts samples of this part"
        if skip < self.num_windows:
            yield from self._order.batches(size, skip)
