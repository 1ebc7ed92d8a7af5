"""Bars to feature rows: a price ladder of 4 channels x 128 levels."""

from __future__ import annotations

import numpy as np

from app.datasets.build.arrays import Features, Floats
from app.datasets.build.bars import Bars
from app.datasets.build.options import CHANNELS, LEVELS


def ladder(bars: Bars, level_size: float) -> tuple[Features, float]:
    """Draw each bar's order flow on a ladder centred on its close, the reference price.

    Returns features [N, 4, 128] float32 in [-1, 1], and how many trades lay beyond the ladder (they count
    in its outermost levels). Channels: volume that hit bids, volume that hit asks, log1p(x) / 10 each;
    order-flow imbalance (bought - sold), tanh(x / 10); number of trades, log1p(x) / 10.
    Level 64 is the close.
    """
    cells = bars.cells
    bar = np.repeat(np.arange(len(bars)), np.diff(bars.starts))
    reference = np.rint(bars.close / level_size).astype(np.int64)
    wanted = cells.level - reference[bar] + LEVELS // 2
    level = np.clip(wanted, 0, LEVELS - 1)
    num_beyond = float(cells.trades[wanted != level].sum())

    def per_level(part: Floats) -> Floats:
        sums: Floats = np.bincount(bar * LEVELS + level, weights=part, minlength=len(bars) * LEVELS).astype(
            float, copy=False
        )
        return sums.reshape(len(bars), LEVELS)

    sold, bought, trades = per_level(cells.sold), per_level(cells.bought), per_level(cells.trades)
    features = np.zeros((len(bars), len(CHANNELS), LEVELS), np.float32)
    # Most levels are empty, and 0 stays 0: the logarithms are taken where something traded.
    at = np.nonzero(trades)
    features[at[0], 0, at[1]] = _log_scaled(sold[at])
    features[at[0], 1, at[1]] = _log_scaled(bought[at])
    features[at[0], 2, at[1]] = np.tanh((bought[at] - sold[at]) / 10)
    features[at[0], 3, at[1]] = _log_scaled(trades[at])
    return features, num_beyond


def _log_scaled(x: Floats) -> Floats:
    return np.minimum(np.log1p(x) / 10, 1.0)
