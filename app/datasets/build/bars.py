"""Trades to bars, each with what traded at every price level: vectorised, with state across batches.

Legend: N bars or trades, C cells (a cell is one price level of one bar).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.datasets.build.arrays import Floats, Ints
from app.datasets.build.errors import BadTrade
from app.datasets.build.trades import Trades

_MAX_LEVEL = 2.0**52


@dataclass(frozen=True, slots=True)
class Cells:
    """What traded at price levels: [C] arrays. level: price / level size, rounded."""

    level: Ints
    bought: Floats
    sold: Floats
    trades: Floats

    def take(self, part: slice | Ints) -> Cells:
        return Cells(self.level[part], self.bought[part], self.sold[part], self.trades[part])


@dataclass(frozen=True, slots=True)
class Bars:
    """Closed bars in time order.

    time_ns: [N] when each bar closed: all of it is known then. close, high, low: [N] prices.
    cells: of all bars, by bar and level; starts: [N + 1], bar i owns cells starts[i] to starts[i + 1].
    """

    time_ns: Ints
    close: Floats
    high: Floats
    low: Floats
    starts: Ints
    cells: Cells

    def __len__(self) -> int:
        return len(self.time_ns)

    def slice(self, start: int, stop: int) -> Bars:
        """Bars start to stop - 1, as views."""
        first, last = int(self.starts[start]), int(self.starts[stop])
        return Bars(
            self.time_ns[start:stop],
            self.close[start:stop],
            self.high[start:stop],
            self.low[start:stop],
            self.starts[start : stop + 1] - first,
            self.cells.take(slice(first, last)),
        )


def join_bars(parts: Sequence[Bars]) -> Bars:
    """One after the other. At least one part."""
    shifts = np.cumsum([0, *(part.starts[-1] for part in parts[:-1])])
    starts = [part.starts[1:] + shift for part, shift in zip(parts, shifts, strict=True)]
    return Bars(
        np.concatenate([part.time_ns for part in parts]),
        np.concatenate([part.close for part in parts]),
        np.concatenate([part.high for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *starts]),
        join_cells([part.cells for part in parts]),
    )


def join_cells(parts: Sequence[Cells]) -> Cells:
    """One after the other. At least one part."""
    return Cells(
        np.concatenate([part.level for part in parts]),
        np.concatenate([part.bought for part in parts]),
        np.concatenate([part.sold for part in parts]),
        np.concatenate([part.trades for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """Entries in time order: trades, or the cells of the open bar standing for its trades."""

    time_ns: Ints
    close: Floats
    high: Floats
    low: Floats
    cells: Cells


class BarBuilder:
    """Cuts the stream of trades into bars.

    bar_trades: a bar closes with its last trade. bar_ns: a bar covers [k, k + 1) x bar_ns since 1970 and
    closes at its end; an interval without trades makes no bar. Exactly one is given.
    The trades after the last close make no bar. Memory is bounded by one batch and one bar's price levels.
    """

    def __init__(self, bar_trades: int | None, bar_ns: int | None, level_size: float) -> None:
        self._bar_trades, self._bar_ns = bar_trades, bar_ns
        self._level_size = level_size
        self._open: _Flow | None = None

    def push(self, trades: Trades) -> Bars:
        """The bars that these trades close; at least one trade."""
        flow = self._flow(trades)
        group = self._groups(flow)
        starts = np.flatnonzero(np.diff(group, prepend=-1)).astype(np.int64)
        ends = np.append(starts[1:], len(group)) - 1
        high, low = np.maximum.reduceat(flow.high, starts), np.minimum.reduceat(flow.low, starts)
        cells, cell_starts = _merge(flow.cells, group, starts)
        bars = Bars(self._close_times(flow.time_ns[ends]), flow.close[ends], high, low, cell_starts, cells)
        num_closed = len(bars) - (not self._is_complete(bars))
        self._open = _open_bar(bars, num_closed, int(flow.time_ns[-1]))
        return bars.slice(0, num_closed)

    def _flow(self, trades: Trades) -> _Flow:
        levels = trades.price / self._level_size
        if not levels.max() < _MAX_LEVEL:
            raise BadTrade(
                f"A price of {trades.price.max():g} is too many levels of {self._level_size:g}.",
                "Raise --level-size, or repair the price.",
            )
        is_buy = trades.side > 0
        cells = Cells(
            np.rint(levels).astype(np.int64),
            np.where(is_buy, trades.volume, 0.0),
            np.where(is_buy, 0.0, trades.volume),
            np.ones(len(levels)),
        )
        flow = _Flow(trades.time_ns, trades.price, trades.price, trades.price, cells)
        return flow if self._open is None else _join_flows(self._open, flow)

    def _groups(self, flow: _Flow) -> Ints:
        """Number the bars from 0 and give each entry its bar's."""
        if self._bar_trades is not None:
            return (np.cumsum(flow.cells.trades).astype(np.int64) - 1) // self._bar_trades
        assert self._bar_ns is not None
        interval = flow.time_ns // self._bar_ns
        return np.cumsum(np.diff(interval, prepend=interval[0]) != 0)

    def _close_times(self, last_trade_ns: Ints) -> Ints:
        if self._bar_ns is None:
            return last_trade_ns
        return (last_trade_ns // self._bar_ns + 1) * self._bar_ns

    def _is_complete(self, bars: Bars) -> bool:
        """Whether the last bar is closed: only the count of trades can tell without a later trade."""
        last = slice(int(bars.starts[-2]), None)
        return self._bar_trades is not None and bars.cells.trades[last].sum() == self._bar_trades


def _open_bar(bars: Bars, num_closed: int, last_ns: int) -> _Flow | None:
    if num_closed == len(bars):
        return None
    cells = bars.slice(num_closed, len(bars)).cells

    def repeated(value: float) -> Floats:
        return np.full(len(cells.level), value)

    time_ns = np.full(len(cells.level), last_ns, np.int64)
    return _Flow(time_ns, repeated(bars.close[-1]), repeated(bars.high[-1]), repeated(bars.low[-1]), cells)


def _join_flows(first: _Flow, second: _Flow) -> _Flow:
    return _Flow(
        np.concatenate((first.time_ns, second.time_ns)),
        np.concatenate((first.close, second.close)),
        np.concatenate((first.high, second.high)),
        np.concatenate((first.low, second.low)),
        join_cells((first.cells, second.cells)),
    )


def _merge(cells: Cells, group: Ints, starts: Ints) -> tuple[Cells, Ints]:
    """Sum the entries of each (bar, level); also where each bar's cells start.

    Sums run in the order of the trades, so a bar cut in two by a batch border gives the same bits.
    """
    lowest = np.minimum.reduceat(cells.level, starts)
    spans = np.maximum.reduceat(cells.level, starts) - lowest + 1
    # A lonely far price would make the table of all levels huge: sort instead.
    is_narrow = spans.sum(dtype=np.float64) <= 8 * len(group) + (1 << 16)
    bar, level, place = (
        _places_by_table(cells.level, group, lowest, spans)
        if is_narrow
        else _places_by_sorting(cells.level, group)
    )
    bought, sold, trades = (
        np.bincount(place, weights=part, minlength=len(bar)).astype(np.float64, copy=False)
        for part in (cells.bought, cells.sold, cells.trades)
    )
    cell_starts = np.searchsorted(bar, np.arange(len(starts) + 1)).astype(np.int64)
    return Cells(level, bought, sold, trades), cell_starts


def _places_by_table(level: Ints, group: Ints, lowest: Ints, spans: Ints) -> tuple[Ints, Ints, Ints]:
    """Bar and level of each occupied cell, in order, and each entry's place among the cells."""
    offsets = np.cumsum(spans) - spans
    key = level - lowest[group] + offsets[group]
    is_occupied = np.zeros(int(spans.sum()), bool)
    is_occupied[key] = True
    occupied = np.flatnonzero(is_occupied)
    bar = np.searchsorted(offsets, occupied, side="right") - 1
    place = (np.cumsum(is_occupied) - 1)[key]
    return bar, occupied - offsets[bar] + lowest[bar], place


def _places_by_sorting(level: Ints, group: Ints) -> tuple[Ints, Ints, Ints]:
    """The same, in memory that does not grow with the range of prices."""
    order = np.lexsort((level, group))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(level[order]) != 0) | (np.diff(group[order]) != 0)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(is_new) - 1
    first = order[is_new]
    return group[first], level[first], place
