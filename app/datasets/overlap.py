"""How far labels look ahead, and how much they overlap: one streamed pass in bounded memory.

C labels of one call, in time order; times in ns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.datasets.times import Times

MAX_OPEN = 1 << 16
_MANTISSA_BITS = 10  # of a float64's 52: bins 0.1 % wide

Floats = NDArray[np.float64]


class Lengths:
    """The median and the maximum of lengths. The median is within 0.1 %, and exact where lengths repeat."""

    def __init__(self) -> None:
        self.longest_ns = 0
        self._count = np.zeros(64 << _MANTISSA_BITS, np.int64)
        self._sum = np.zeros(len(self._count))

    def add(self, lengths_C: Times) -> None:
        """Take in lengths; a negative one counts as 0."""
        lengths_C = np.maximum(lengths_C, 0)
        self.longest_ns = max(self.longest_ns, int(lengths_C.max(initial=0)))
        # The leading bits of a float rise with it: exponent and mantissa number the bins.
        bits_C = np.maximum(lengths_C, 1).astype(np.float64).view(np.int64) >> (52 - _MANTISSA_BITS)
        bins_C = bits_C - (1023 << _MANTISSA_BITS)
        self._count += np.bincount(bins_C, minlength=len(self._count))
        self._sum += np.bincount(bins_C, weights=lengths_C, minlength=len(self._count))

    @property
    def median_ns(self) -> int:
        """The mean of the bin that holds the median."""
        total = np.cumsum(self._count)
        place = int(np.searchsorted(total, (total[-1] + 1) // 2))
        return round(float(self._sum[place]) / max(int(self._count[place]), 1))


class Uniqueness:
    """The sum of the average uniqueness of the labels of one series, which is how many they are worth.

    While a label is open, from its row to its end, it shares each moment with the others that are open; its
    uniqueness is the mean of 1 / their number over that time. O(C log C) a call; of more than MAX_OPEN open
    labels, neighbouring ends are taken together, so memory is bounded.
    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), ch. 4, in time instead of bars.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._now_ns = 0
        # Open labels: when they end, how many, and the sum of 1 / their length.
        self._ends_ns = np.empty(0, np.int64)
        self._num = np.empty(0)
        self._rate = np.empty(0)

    def add(self, times_C: Times, ends_C: Times) -> None:
        """Take in the next labels of the series. One that ends at its row lasts 1 ns."""
        if not len(times_C):
            return
        until_ns = int(times_C[-1])
        ends_C = np.maximum(ends_C, times_C + 1)
        rates_C = 1.0 / (ends_C - times_C)
        was_open = self._open
        self._ends_ns = np.concatenate([self._ends_ns, ends_C])
        self._num = np.concatenate([self._num, np.ones(len(ends_C))])
        self._rate = np.concatenate([self._rate, rates_C])
        order = np.argsort(self._ends_ns, kind="stable")
        self._ends_ns, self._num, self._rate = self._ends_ns[order], self._num[order], self._rate[order]
        self._sum += self._gained(was_open, times_C, rates_C, until_ns)
        self._now_ns = until_ns
        is_open = self._ends_ns > until_ns
        self._ends_ns, self._num = self._ends_ns[is_open], self._num[is_open]
        self._rate = self._rate[is_open]
        if len(self._ends_ns) > MAX_OPEN:
            self._merge()

    @property
    def worth(self) -> float:
        """How many independent labels those so far are worth, were no more to come."""
        if not len(self._ends_ns):
            return self._sum
        none = np.empty(0)
        return self._sum + self._gained(self._open, none.astype(np.int64), none, int(self._ends_ns[-1]))

    @property
    def _open(self) -> tuple[float, float]:
        """The number of open labels, and the sum of 1 / their length."""
        return float(self._num.sum()), float(self._rate.sum())

    def _gained(self, was_open: tuple[float, float], times_C: Times, rates_C: Floats, until_ns: int) -> float:
        """Return what the labels gain from now until then.

        Each gains 1 / length / number of open labels at a moment; so all of them together gain the sum of
        1 / length of the open ones, over their number.
        """
        moments = np.concatenate([[self._now_ns], times_C, self._ends_ns])
        order = np.argsort(moments, kind="stable")
        spans = np.diff(np.minimum(moments[order], until_ns))
        num, rate = (
            np.cumsum(np.concatenate([[begin], opened, -closed])[order])[:-1]
            for begin, opened, closed in (
                (was_open[0], np.ones(len(times_C)), self._num),
                (was_open[1], rates_C, self._rate),
            )
        )
        is_open = (num > 0.5) & (spans > 0)
        return float(np.sum(spans[is_open] * rate[is_open] / num[is_open]))

    def _merge(self) -> None:
        """Take neighbouring ends together, in pairs, each at the mean time of its labels."""
        if len(self._ends_ns) % 2:
            self._ends_ns = np.append(self._ends_ns, self._ends_ns[-1])
            self._num, self._rate = np.append(self._num, 0.0), np.append(self._rate, 0.0)
        ends, num = self._ends_ns.reshape(-1, 2), self._num.reshape(-1, 2)
        share = num[:, 1] / num.sum(1)
        self._ends_ns = ends[:, 0] + np.rint((ends[:, 1] - ends[:, 0]) * share).astype(np.int64)
        self._num, self._rate = num.sum(1), self._rate.reshape(-1, 2).sum(1)
