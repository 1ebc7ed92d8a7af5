"""The build again, one trade at a time in plain Python: slow, and obvious enough to trust."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from app.datasets.build.arrays import Floats
from app.datasets.build.trades import Trades


@dataclass
class Bar:
    time_ns: int
    close: float
    high: float
    low: float
    levels: dict[int, list[float]] = field(default_factory=dict)  # level -> [bought, sold, trades]


def bars(trades: Trades, level_size: float, *, bar_trades: int | None, bar_ns: int | None) -> list[Bar]:
    closed: list[Bar] = []
    current: Bar | None = None
    count = 0
    for time_ns, price, volume, side in zip(
        trades.time_ns.tolist(),
        trades.price.tolist(),
        trades.volume.tolist(),
        trades.side.tolist(),
        strict=True,
    ):
        if bar_ns is not None and current is not None and time_ns >= current.time_ns:
            closed.append(current)
            current = None
        if current is None:
            end_ns = time_ns if bar_ns is None else (time_ns // bar_ns + 1) * bar_ns
            current, count = Bar(end_ns, price, price, price), 0
        if bar_ns is None:
            current.time_ns = time_ns
        current.close = price
        current.high, current.low = max(current.high, price), min(current.low, price)
        cell = current.levels.setdefault(round(price / level_size), [0.0, 0.0, 0.0])
        cell[0 if side > 0 else 1] += volume
        cell[2] += 1
        count += 1
        if bar_trades is not None and count == bar_trades:
            closed.append(current)
            current = None
    return closed


def ladder(bar: Bar, level_size: float) -> Floats:
    sums = np.zeros((3, 128))
    for level, cell in sorted(bar.levels.items()):
        place = min(max(level - round(bar.close / level_size) + 64, 0), 127)
        for k in range(3):
            sums[k, place] += cell[k]
    features = np.zeros((4, 128))
    for place in range(128):
        bought, sold, count = sums[:, place]
        features[0, place] = min(math.log1p(sold) / 10, 1)
        features[1, place] = min(math.log1p(bought) / 10, 1)
        features[2, place] = math.tanh((bought - sold) / 10)
        features[3, place] = min(math.log1p(count) / 10, 1)
    return features


def label(
    known: list[Bar],
    i: int,
    level_size: float,
    barriers: tuple[float, float, float],
    *,
    horizon_bars: int | None,
    horizon_ns: int | None,
) -> tuple[int, int] | None:
    """(class, when it was certain), or None while the horizon is incomplete. Walks forward, bar by bar."""
    stop, target, target_high = barriers
    start = known[i]
    if horizon_bars is not None:
        if i + horizon_bars >= len(known):
            return None
        ahead = known[i + 1 : i + horizon_bars + 1]
        end_ns = ahead[-1].time_ns
    else:
        assert horizon_ns is not None
        end_ns = start.time_ns + horizon_ns
        if known[-1].time_ns <= end_ns:
            return None
        ahead = [bar for bar in known[i + 1 :] if bar.time_ns <= end_ns]
    has_target = False
    for bar in ahead:
        down, up = (start.close - bar.low) / level_size, (bar.high - start.close) / level_size
        if down >= stop - 1e-6:
            return (2 if has_target else 1), bar.time_ns
        if up >= target_high - 1e-6:
            return 3, bar.time_ns
        has_target = has_target or up >= target - 1e-6
    return (2 if has_target else 0), end_ns
