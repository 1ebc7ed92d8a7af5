"""Bars: the vectorised builder against one trade at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.build.bars import BarBuilder, Bars, join_bars
from app.datasets.build.errors import BadTrade
from app.datasets.build.trades import Trades
from tests.app.datasets.build import reference
from tests.app.datasets.build.make import START_NS, TICK, cut, random_trades

BARS = st.one_of(
    st.tuples(st.integers(1, 40), st.none()),
    st.tuples(st.none(), st.integers(1, 30).map(lambda s: s * 10**9)),
)


def build(batches: list[Trades], bar_trades: int | None, bar_ns: int | None) -> Bars:
    builder = BarBuilder(bar_trades, bar_ns, TICK)
    return join_bars([builder.push(batch) for batch in batches])


def same(one: Bars, other: Bars) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (one.time_ns, other.time_ns),
            (one.close, other.close),
            (one.high, other.high),
            (one.low, other.low),
            (one.starts, other.starts),
            (one.cells.level, other.cells.level),
            (one.cells.bought, other.cells.bought),
            (one.cells.sold, other.cells.sold),
            (one.cells.trades, other.cells.trades),
        )
    )


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 300), seed=st.integers(0, 2**32), bar=BARS, step=st.sampled_from([1, 3, 5000]))
def test_bars_are_those_of_a_loop_over_trades(
    num: int, seed: int, bar: tuple[int | None, int | None], step: int
) -> None:
    trades = random_trades(num, seed, max_step=1)
    trades = Trades(trades.time_ns, np.round(trades.price * step, 1), trades.volume, trades.side)
    expected = reference.bars(trades, TICK, bar_trades=bar[0], bar_ns=bar[1])

    found = build([trades], *bar)

    assert found.time_ns.tolist() == [b.time_ns for b in expected]
    assert found.close.tolist() == [b.close for b in expected]
    assert found.high.tolist() == [b.high for b in expected]
    assert found.low.tolist() == [b.low for b in expected]
    for i, bar_i in enumerate(expected):
        cells = found.slice(i, i + 1).cells
        by_level = zip(
            cells.level.tolist(),
            cells.bought.tolist(),
            cells.sold.tolist(),
            cells.trades.tolist(),
            strict=True,
        )
        assert {level: list(rest) for level, *rest in by_level} == bar_i.levels


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 300),
    seed=st.integers(0, 2**32),
    bar=BARS,
    borders=st.lists(st.integers(0, 300), max_size=12),
)
def test_batch_borders_change_no_bit(
    num: int, seed: int, bar: tuple[int | None, int | None], borders: list[int]
) -> None:
    trades = random_trades(num, seed)
    batches = cut(trades, [min(border, num) for border in borders])
    assert same(build(batches, *bar), build([trades], *bar))


def test_one_trade_per_batch_changes_no_bit() -> None:
    trades = random_trades(200, 1)
    assert same(build(cut(trades, range(200)), 7, None), build([trades], 7, None))


def test_bar_of_trades_closes_with_its_last_trade() -> None:
    bars = build([random_trades(30, 2)], 10, None)
    assert bars.time_ns.tolist() == random_trades(30, 2).time_ns[[9, 19, 29]].tolist()


def test_bar_of_seconds_closes_at_the_end_of_its_interval() -> None:
    second = 10**9
    start = START_NS // second * second
    times = np.array([start, start + second - 1, start + second, start + 5 * second])
    trades = Trades(times, np.array([1.0, 1.1, 1.2, 1.3]), np.ones(4), np.ones(4, np.int8))

    bars = build([trades], None, second)

    assert bars.time_ns.tolist() == [start + second, start + 2 * second]
    assert bars.close.tolist() == [1.1, 1.2]  # the interval of the last trade has not ended


def test_trades_after_the_last_close_make_no_bar() -> None:
    assert len(build([random_trades(19, 3)], 10, None)) == 1


def test_far_price_costs_no_memory() -> None:
    trades = random_trades(100, 4)
    trades.price[50] = 1e9  # ten billion levels away
    bars = build([trades], 25, None)
    expected = reference.bars(trades, TICK, bar_trades=25, bar_ns=None)
    assert bars.slice(2, 3).cells.level.tolist() == sorted(expected[2].levels)
    assert bars.cells.trades.sum() == 100


def test_far_price_changes_no_bit_of_the_others() -> None:
    trades = random_trades(100, 5)
    spiked = random_trades(100, 5)
    spiked.price[99] = 1e9
    assert same(build([trades], 25, None).slice(0, 3), build([spiked], 25, None).slice(0, 3))


def test_price_of_too_many_levels_is_refused() -> None:
    trades = random_trades(1, 0)
    trades.price[0] = 1e6
    with pytest.raises(BadTrade, match="too many levels"):
        BarBuilder(1, None, 1e-12).push(trades)
