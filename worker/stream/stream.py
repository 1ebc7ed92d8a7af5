"""The stream: the samples of one part of the split as batches, in time order or shuffled by blocks."""

from __future__ import annotations

from collections.abc import Generator

from app.datasets.schema import Dataset
from app.datasets.split import PartName, SplitPlan
from worker.stream.batch import Batch
from worker.stream.errors import StreamBudgetTooSmall
from worker.stream.grouped import TimeOrder
from worker.stream.layout import decoded_row_bytes
from worker.stream.shuffle import Shuffle, shuffled
from worker.stream.ungrouped import RowOrder
from worker.stream.windows import Windows

DEFAULT_BUDGET_BYTES = 512 * 2**20
# Blocks alive at once: two in use, one ready, one being read (compressed, decoded, converted).
BLOCKS_IN_BUDGET = 8
# Larger blocks are not faster: they leave the caches and hold more memory.
MAX_BLOCK_BYTES = 8 * 2**20
# Always allowed: less than importing torch takes.
MIN_BUFFER_BYTES = 2**20
MIB = 2**20


class Stream:
    """The windows of one part, ordered by their last row's time, then by group; or shuffled from that order.

    A batch is a function of plan, shuffle, epoch, batch size and position alone: not of how files,
    row groups or the memory budget cut the rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: SplitPlan,
        part: PartName,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        verify_checksums: bool = False,
        shuffle: Shuffle | None = None,
        zero_non_finite: bool = False,
    ) -> None:
        """budget_bytes: memory of the rows in flight; verify_checksums: of pages, when first read.

        shuffle: null = time order; zero_non_finite: NaN and infinity are read as 0, else they are errors.
        Raises StreamBudgetTooSmall when the shuffle's buffer needs over half the budget.
        """
        self._windows = Windows(plan.parts[part], plan.window, plan.stride)
        self._shuffle = shuffle
        if shuffle is not None:
            self._check_buffer(shuffle.buffer, dataset, plan, budget_bytes)
        max_bytes = min(budget_bytes // BLOCKS_IN_BUDGET, MAX_BLOCK_BYTES)
        self._order: RowOrder | TimeOrder
        if dataset.group is None:
            self._order = RowOrder(
                dataset,
                plan,
                self._windows,
                max_bytes,
                verify_checksums=verify_checksums,
                zero_non_finite=zero_non_finite,
            )
        else:
            self._order = TimeOrder(
                dataset,
                plan,
                self._windows,
                max_bytes,
                budget_bytes // 2,
                verify_checksums=verify_checksums,
                zero_non_finite=zero_non_finite,
            )

    @property
    def num_windows(self) -> int:
        """How many samples the part has."""
        return self._windows.total

    @property
    def seed(self) -> int:
        """What the order depends on besides the epoch; 0 in time order."""
        return 0 if self._shuffle is None else self._shuffle.seed

    def __len__(self) -> int:
        return self.num_windows

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Generator[Batch, None, None]:
        """Yield consecutive batches of `size` samples from sample `skip` on; the last may be short.

        epoch: whose order, when the samples are shuffled. Starting anywhere reads what the first batch needs
        (with a shuffle: its buffer), nothing before it. Closing the generator ends its thread and closes its
        files.
        Raises DataError for what is wrong with the data, where it is first read.
        """
        assert size >= 1, "a batch has at least one sample"
        assert 0 <= skip <= self.num_windows, "skip counts samples of this part"
        if skip == self.num_windows:
            return
        if self._shuffle is None:
            yield from self._order.batches(size, skip)
        else:
            yield from shuffled(self._order.batches, self.num_windows, self._shuffle, epoch, size, skip)

    def _check_buffer(self, buffer: int, dataset: Dataset, plan: SplitPlan, budget_bytes: int) -> None:
        """Refuse a buffer whose rows, read and laid side by side, do not fit. It never depends on memory."""
        windows = min(buffer, self.num_windows)
        rows = min(windows * min(plan.stride, plan.window) + len(plan.groups) * plan.window, dataset.rows)
        needed = 2 * rows * decoded_row_bytes(dataset.features)
        if needed > max(budget_bytes // 2, MIN_BUFFER_BYTES):
            raise StreamBudgetTooSmall(
                f"a shuffle buffer of {windows:,} windows needs {needed // MIB} MiB;"
                f" the stream may use {budget_bytes // 2 // MIB} MiB for it",
                "Lower data.shuffle_buffer, or raise SAIMP_STREAM_BUDGET.",
                pointer="/data/shuffle_buffer",
            )
