"""Which windows a part of the split has: its runs, made searchable.

A row's key is group x 2^40 + its row in the group, so keys of one group never meet another's.
Shapes: N rows asked about, W runs, B windows of a batch, R rows of a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.datasets.split import PartPlan

GROUP_KEY = 1 << 40
NEVER = np.iinfo(np.int64).max // 2

Ints = NDArray[np.int64]


class Windows:
    """The windows of one part, as runs sorted by the key of their last rows."""

    def __init__(self, part: PartPlan, window: int, stride: int) -> None:
        self.window, self.stride = window, stride
        runs = [run for run in part.runs if run.count]
        self.firsts_W = np.array([run.group * GROUP_KEY + run.first for run in runs], np.int64)
        self.counts_W = np.array([run.count for run in runs], np.int64)
        self.lasts_W = self.firsts_W + (self.counts_W - 1) * stride
        self.before_W = np.cumsum(self.counts_W) - self.counts_W  # windows in earlier runs
        self.total = int(self.counts_W.sum())
        assert (np.diff(self.firsts_W) > 0).all(), "runs must be sorted by group, then row"

    def next_end(self, keys_N: Ints) -> Ints:
        """Return the key of the first window end at or after each key, NEVER without one, [N]."""
        run_N = np.searchsorted(self.lasts_W, keys_N)
        has_run_N = run_N < len(self.lasts_W)
        first_N = self.firsts_W[np.where(has_run_N, run_N, 0)] if len(self.firsts_W) else keys_N
        steps_N = np.maximum(-((first_N - keys_N) // self.stride), 0)
        return np.where(has_run_N, first_N + steps_N * self.stride, NEVER)

    def is_used(self, keys_N: Ints) -> NDArray[np.bool_]:
        """Tell which rows some window holds, [N]."""
        return self.next_end(keys_N) - keys_N < self.window

    def first_row(self, sample: int) -> int:
        """Return the key of the first row of a sample's window."""
        run = int(self.before_W.searchsorted(sample, "right")) - 1
        return int(self.firsts_W[run]) + (sample - int(self.before_W[run])) * self.stride - self.window + 1

    def last_before(self, key: int) -> int:
        """Return the last sample whose window starts at or before a key, -1 without one."""
        end = key + self.window - 1
        run = int(self.firsts_W.searchsorted(end, "right")) - 1
        if run < 0:
            return -1
        within = min((end - int(self.firsts_W[run])) // self.stride, int(self.counts_W[run]) - 1)
        return int(self.before_W[run]) + within

    def touches(self, first: int, last: int) -> bool:
        """Tell whether some window holds a row of keys first .. last - 1."""
        return bool(self.next_end(np.array([first]))[0] - (self.window - 1) < last)


def union_rows(starts_B: Ints, window: int) -> tuple[Ints, Ints]:
    """Return the rows that windows hold, sorted, each once [R], and where each window starts in them [B].

    starts_B: first row of each window, in any order. A function of the starts alone, so a batch has the same
    rows wherever its blocks end.
    """
    order_B = np.argsort(starts_B, kind="stable")
    sorted_B = starts_B[order_B]
    fresh_B = np.minimum(np.diff(sorted_B, prepend=sorted_B[0] - window), window)
    ends_B = np.cumsum(fresh_B)
    rows_R = np.repeat(sorted_B + window - ends_B, fresh_B) + np.arange(ends_B[-1])
    places_B = np.empty_like(starts_B)
    places_B[order_B] = ends_B - window
    return rows_R, places_B
