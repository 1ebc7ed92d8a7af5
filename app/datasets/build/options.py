"""What a build can be told: columns, bars, ladder, barriers, files."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from app.datasets.build.errors import InvalidBuildOption

Period = Literal["day", "month", "year", "all"]

CLASSES = ("Neutro", "Stop", "Long", "SuperLong")
CHANNELS = ("sold", "bought", "imbalance", "trades")
LEVELS = 128

_MAX_SECONDS = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the trade columns; None = recognised by name.

    side: who took liquidity, as buy/sell, b/s or 1/-1.
    maker: whether the buyer was the maker (Binance), so that true means a sell.
    tick_rule: ignore both, tell the aggressor from the price.
    """

    timestamp: str | None = None
    price: str | None = None
    volume: str | None = None
    side: str | None = None
    maker: str | None = None
    tick_rule: bool = False

    def __post_init__(self) -> None:
        if self.side is not None and self.maker is not None:
            raise InvalidBuildOption("Both a side and a maker column are named.", "Name one of them.")
        if self.tick_rule and (self.side is not None or self.maker is not None):
            raise InvalidBuildOption(
                "The tick rule ignores the side, but a side or maker column is named.", "Drop one of the two."
            )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything that decides the content of a dataset, besides its trades.

    bar_trades, bar_s: a bar closes after so many trades, or on a grid of so many seconds (exactly one).
    level_size: price width of one ladder level; None = the smallest common increment of the prices.
    stop, target, target_high: barriers, in levels from the bar's close.
    horizon_bars, horizon_s: how far a label looks, in bars or in seconds (exactly one).
    period: each file holds the rows of one UTC day, month, year, or all.
    rows_per_group: rows of a Parquet row group.
    source: where the trades come from, for the metadata.
    Raises InvalidBuildOption, naming the option, its value and its range.
    """

    columns: Columns = field(default_factory=Columns)
    bar_trades: int | None = 200
    bar_s: float | None = None
    level_size: float | None = None
    stop: float = 8.0
    target: float = 8.0
    target_high: float = 16.0
    horizon_bars: int | None = 50
    horizon_s: float | None = None
    period: Period = "month"
    rows_per_group: int = 4096
    source: str | None = None

    def __post_init__(self) -> None:
        _exactly_one("bar_trades", self.bar_trades, "bar_s", self.bar_s)
        _exactly_one("horizon_bars", self.horizon_bars, "horizon_s", self.horizon_s)
        _within("bar_trades", self.bar_trades, 1, 10_000_000)
        _within("bar_s", self.bar_s, 0.001, _MAX_SECONDS)
        _within("level_size", self.level_size, 1e-12, 1e12)
        _within("stop", self.stop, 0.01, 1e9)
        _within("target", self.target, 0.01, 1e9)
        _within("target_high", self.target_high, 0.01, 1e9)
        _within("horizon_bars", self.horizon_bars, 1, 1_000_000)
        _within("horizon_s", self.horizon_s, 0.001, _MAX_SECONDS)
        _within("rows_per_group", self.rows_per_group, 1, 65_536)
        if self.target_high <= self.target:
            raise InvalidBuildOption(
                f"target_high is {self.target_high:g}, not above target ({self.target:g}).",
                "SuperLong is the farther target: raise target_high or lower target.",
            )

    def parameters(self) -> dict[str, object]:
        """All options as plain JSON values, for the dataset's metadata."""
        return dataclasses.asdict(self)


def _exactly_one(name_a: str, a: float | None, name_b: str, b: float | None) -> None:
    if (a is None) == (b is None):
        found = "neither" if a is None else "both"
        raise InvalidBuildOption(f"Give either {name_a} or {name_b}; {found} is given.")


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InvalidBuildOption(f"{name} is {value:g}; it must be between {low:g} and {high:g}.")
