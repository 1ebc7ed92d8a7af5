"""The price increment, told from the prices."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from app.datasets.build.arrays import Floats, Ints
from app.datasets.build.errors import LevelSizeUnknown
from app.datasets.build.trades import Trades

_SAMPLE_TRADES = 200_000
_SHARE = 0.999  # of the trades; the rest may be off the grid (averaged or mistyped prices)
_DIGITS = 12  # significant decimal digits of a price


def sample_prices(trades: Iterable[Trades], limit: int = _SAMPLE_TRADES) -> Floats:
    """The prices of the first `limit` trades, however they are cut into batches."""
    parts: list[Floats] = []
    missing = limit
    for batch in trades:
        parts.append(batch.price[:missing])
        missing -= len(parts[-1])
        if not missing:
            break
    return np.concatenate(parts)


def level_size(price: Floats) -> float:
    """The largest increment of which the most traded prices, 99.9 % of the trades, are all multiples.

    Raises LevelSizeUnknown when fewer than two prices were traded.
    """
    digits = _DIGITS - math.ceil(math.log10(float(price.max())))
    scaled: Ints = np.rint(price * 10.0**digits).astype(np.int64)
    prices, counts = np.unique(scaled, return_counts=True)
    if len(prices) < 2:
        raise LevelSizeUnknown(
            f"The first {len(price)} trades all have the price {price[0]:g}: no increment can be told.",
            "Give --level-size.",
        )
    by_count = np.argsort(-counts, kind="stable")
    num_common = max(2, int(np.searchsorted(np.cumsum(counts[by_count]), _SHARE * len(price))) + 1)
    increment = int(np.gcd.reduce(prices[by_count[:num_common]]))
    return float(f"{increment * 10.0**-digits:.{_DIGITS}g}")
