"""Features: the drawn ladder against a loop over levels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.build.bars import BarBuilder
from app.datasets.build.features import ladder
from app.datasets.build.trades import Trades
from tests.app.datasets.build import reference
from tests.app.datasets.build.make import START_NS, TICK, random_trades


def trades_at(price: list[float], volume: list[float], side: list[int]) -> Trades:
    times = START_NS + np.arange(len(price), dtype=np.int64)
    return Trades(times, np.array(price), np.array(volume), np.array(side, np.int8))


@settings(max_examples=40, deadline=None)
@given(num=st.integers(10, 300), seed=st.integers(0, 2**32), step=st.sampled_from([1, 60]))
def test_features_are_those_of_a_loop(num: int, seed: int, step: int) -> None:
    trades = random_trades(num, seed, max_step=step)
    bars = BarBuilder(10, None, TICK).push(trades)
    features, _ = ladder(bars, TICK)
    expected = reference.bars(trades, TICK, bar_trades=10, bar_ns=None)
    assert features.dtype == np.float32
    np.testing.assert_allclose(
        features, np.stack([reference.ladder(bar, TICK) for bar in expected]), rtol=1e-6, atol=1e-7
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), border=st.integers(1, 29))
def test_drawing_bars_in_parts_changes_no_bit(seed: int, border: int) -> None:
    bars = BarBuilder(10, None, TICK).push(random_trades(300, seed))
    whole, _ = ladder(bars, TICK)
    first, _ = ladder(bars.slice(0, border), TICK)
    rest, _ = ladder(bars.slice(border, 30), TICK)
    assert np.concatenate((first, rest)).tobytes() == whole.tobytes()


def test_level_64_is_the_close_and_buys_are_in_channel_1() -> None:
    bars = BarBuilder(3, None, TICK).push(trades_at([99.9, 100.1, 100.0], [2.0, 3.0, 5.0], [-1, 1, 1]))
    features, _ = ladder(bars, TICK)
    expected = np.zeros((4, 128), np.float32)
    expected[0, 63] = np.log1p(2) / 10
    expected[1, 64], expected[1, 65] = np.log1p(5) / 10, np.log1p(3) / 10
    expected[2, 63:66] = np.tanh([-0.2, 0.5, 0.3])
    expected[3, 63:66] = np.log1p(1) / 10
    np.testing.assert_array_equal(features[0], expected)


def test_outermost_levels_hold_all_beyond_and_it_is_counted() -> None:
    prices = [100.0 - 7.0, 100.0 - 6.4, 100.0 + 6.3, 100.0 + 9.0, 100.0 + 99.0, 100.0]
    bars = BarBuilder(6, None, TICK).push(trades_at(prices, [1.0] * 6, [1] * 6))
    features, num_beyond = ladder(bars, TICK)
    assert num_beyond == 3
    np.testing.assert_allclose(features[0, 3, [0, 127]], np.log1p([2, 3]) / 10, rtol=1e-6)


def test_huge_volumes_are_clipped_to_one() -> None:
    bars = BarBuilder(2, None, TICK).push(trades_at([100.0, 100.1], [1e15, 1e15], [1, -1]))
    features, _ = ladder(bars, TICK)
    assert features.max() == 1
    assert features.min() == -1
