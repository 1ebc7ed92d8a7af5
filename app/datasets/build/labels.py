"""Triple-barrier labels: what happened first after a bar's close, and when that was known.

Source: Lopez de Prado, Advances in Financial Machine Learning (2018), ch. 3. Legend: N bars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.datasets.build.arrays import Floats, Ints, Signs
from app.datasets.build.bars import Bars, join_bars

NEUTRO, STOP, LONG, SUPER_LONG = range(4)

_TOLERANCE = 1e-6  # levels: a barrier computed in floating point may miss its own price by some bits


@dataclass(frozen=True, slots=True)
class Barriers:
    """Distances from the close, in levels, and the horizon in bars or in nanoseconds (exactly one)."""

    stop: float
    target: float
    target_high: float
    horizon_bars: int | None
    horizon_ns: int | None


@dataclass(frozen=True, slots=True)
class Labelled:
    """Bars with their labels. label: [N] 0..3; label_end_ns: [N] the first instant it was certain."""

    bars: Bars
    label: Signs
    label_end_ns: Ints

    def __len__(self) -> int:
        return len(self.bars)

    def slice(self, start: int, stop: int) -> Labelled:
        return Labelled(self.bars.slice(start, stop), self.label[start:stop], self.label_end_ns[start:stop])


class Labeller:
    """Holds bars until their whole horizon has passed, then labels them.

    A bar's label looks at the bars that follow it: the next `horizon_bars`, or those that close at most
    `horizon_ns` after it did. Without the whole horizon there is no label, touched or not: the rows that
    would be left are those that touched early. Memory is bounded by one batch and one horizon.
    """

    def __init__(self, barriers: Barriers, level_size: float) -> None:
        self._barriers = barriers
        self._level_size = level_size
        self._waiting: Bars | None = None

    def push(self, bars: Bars) -> Labelled | None:
        """The rows whose horizon these bars complete; None when there is none."""
        known = bars if self._waiting is None else join_bars([self._waiting, bars])
        ends, ends_ns = self._horizon(known)
        num_ready = len(ends)
        self._waiting = known.slice(num_ready, len(known))
        if not num_ready:
            return None
        label, label_end_ns = _label(known, ends, ends_ns, self._barriers, self._level_size)
        return Labelled(known.slice(0, num_ready), label, label_end_ns)

    def _horizon(self, bars: Bars) -> tuple[Ints, Ints]:
        """For each bar whose horizon is complete: the first bar beyond it, and when it ends."""
        if self._barriers.horizon_bars is not None:
            num_ready = max(len(bars) - self._barriers.horizon_bars, 0)
            ends = np.arange(num_ready) + self._barriers.horizon_bars + 1
            return ends, bars.time_ns[ends - 1]
        assert self._barriers.horizon_ns is not None
        until_ns = bars.time_ns + self._barriers.horizon_ns
        ends = np.searchsorted(bars.time_ns, until_ns, side="right").astype(np.int64)
        # A bar beyond the end proves that no other will close within the horizon.
        num_ready = int(np.searchsorted(ends, len(bars)))
        return ends[:num_ready], until_ns[:num_ready]


def _label(
    bars: Bars, ends: Ints, ends_ns: Ints, barriers: Barriers, level_size: float
) -> tuple[Signs, Ints]:
    """Labels of the first len(ends) bars; bar i looks at bars i + 1 to ends[i] - 1."""
    close = bars.close[: len(ends)]
    tolerance = _TOLERANCE * level_size
    stop = _first_reaching(-bars.low, barriers.stop * level_size - close - tolerance, ends)
    target = _first_reaching(bars.high, close + barriers.target * level_size - tolerance, ends)
    high = _first_reaching(bars.high, close + barriers.target_high * level_size - tolerance, ends)

    # One bar that touches stop and target may have touched the stop first: count the worse.
    is_stop = (stop < ends) & (stop <= target)
    is_super = (high < ends) & (high < stop)
    is_long = (target < ends) & (target < stop) & ~is_super
    label = np.select([is_stop, is_super, is_long], [STOP, SUPER_LONG, LONG], NEUTRO).astype(np.int8)

    # Stop and Long are certain at the stop, SuperLong at the higher target, the rest when the horizon ends.
    decided_by = np.select([is_super, is_stop | is_long], [high, stop], ends)
    is_decided = decided_by < ends
    when_ns = bars.time_ns[np.where(is_decided, decided_by, 0)]
    return label, np.where(is_decided, when_ns, ends_ns)


def _first_reaching(value: Floats, threshold: Floats, ends: Ints) -> Ints:
    """For each i < len(ends): the first j in (i, ends[i]) with value[j] >= threshold[i], else ends[i].

    Binary descent over a table of maxima of 1, 2, 4, ... neighbours: O(N log horizon), no loop over bars.
    """
    position = np.arange(len(ends)) + 1
    longest = int((ends - position).max(initial=0))
    maxima = [value]
    while 2 ** len(maxima) <= longest:
        step = 2 ** (len(maxima) - 1)
        maxima.append(np.maximum(maxima[-1][:-step], maxima[-1][step:]))
    for power in reversed(range(len(maxima))):
        width = 2**power
        fits = position + width <= ends
        at = np.where(fits, position, 0)
        can_skip = fits & (maxima[power][at] < threshold)
        position = np.where(can_skip, position + width, position)
    return position
