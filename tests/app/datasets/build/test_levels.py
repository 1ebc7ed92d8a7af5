"""The level size, told from prices."""

from __future__ import annotations

import numpy as np
import pytest

from app.datasets.build.errors import LevelSizeUnknown
from app.datasets.build.levels import level_size, sample_prices
from tests.app.datasets.build.make import cut, random_trades


@pytest.mark.parametrize("tick", [0.25, 0.1, 0.01, 0.05, 1e-8, 2.5e-6, 1.0, 5.0, 100.0])
def test_tick_is_found(tick: float) -> None:
    ticks = 4000 + np.cumsum(np.random.default_rng(0).integers(-2, 3, 5000))
    assert level_size(ticks * np.float64(tick)) == tick


def test_few_prices_off_the_grid_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    price = np.round((4000 + np.cumsum(rng.integers(-2, 3, 50_000)) % 500) * 0.25, 2)
    price[:20] += rng.random(20) * 0.1
    assert level_size(price) == 0.25


def test_one_price_tells_no_tick() -> None:
    with pytest.raises(LevelSizeUnknown) as caught:
        level_size(np.full(10, 99.5))
    assert caught.value.hint == "Give --level-size."


def test_sample_does_not_depend_on_the_batches() -> None:
    trades = random_trades(100, 0)
    for borders in ([], [3], [10, 20, 30], [33, 34, 99]):
        assert sample_prices(cut(trades, borders), 34).tolist() == trades.price[:34].tolist()
