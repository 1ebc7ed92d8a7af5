"""Which column is what: named by the user, else recognised by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.datasets.build.errors import MissingColumn
from app.datasets.build.options import Columns
from app.errors import shown

_TIMESTAMP = (
    "timestamp",
    "transact_time",
    "datetime",
    "date_time",
    "date and time",
    "trade_time",
    "time",
    "ts",
)
_PRICE = ("price",)
_VOLUME = ("volume", "quantity", "qty", "size", "amount")
_SIDE = ("side", "aggressor_side", "aggressor", "taker_side")
_MAKER = ("is_buyer_maker", "isbuyermaker", "buyer_maker")

# Binance archives come without a header line; the place of the boolean tells the two kinds apart.
_AGG_TRADES = (
    "agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker",
    "is_best_match",
)  # fmt: skip
_TRADES = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", "is_best_match")


@dataclass(frozen=True, slots=True)
class TradeColumns:
    """The columns of one file that hold the trades; without side and maker the tick rule decides."""

    timestamp: str
    price: str
    volume: str
    side: str | None
    maker: str | None

    @property
    def names(self) -> list[str]:
        found = (self.timestamp, self.price, self.volume, self.side, self.maker)
        return [name for name in found if name is not None]


def find_columns(names: Sequence[str], asked: Columns, where: str) -> TradeColumns:
    """Match a file's column names to what a trade needs. Raises MissingColumn."""
    side = maker = None
    if not asked.tick_rule:
        if asked.maker is None:
            side = _pick("side", names, asked.side, _SIDE, where, required=asked.side is not None)
        if asked.side is None and side is None:
            maker = _pick("maker", names, asked.maker, _MAKER, where, required=asked.maker is not None)
    return TradeColumns(
        timestamp=_required("timestamp", names, asked.timestamp, _TIMESTAMP, where),
        price=_required("price", names, asked.price, _PRICE, where),
        volume=_required("volume", names, asked.volume, _VOLUME, where),
        side=side,
        maker=maker,
    )


def headerless_names(first_line: Sequence[str]) -> list[str] | None:
    """The columns of a Binance archive without a header line; None when the line is a header."""

    def is_flag(place: int) -> bool:
        return len(first_line) > place and first_line[place].strip().lower() in ("true", "false")

    if len(first_line) in (7, 8) and is_flag(6) and not is_flag(5):
        return list(_AGG_TRADES[: len(first_line)])
    if len(first_line) in (6, 7) and is_flag(5):
        return list(_TRADES[: len(first_line)])
    return None


def _required(role: str, names: Sequence[str], asked: str | None, known: Sequence[str], where: str) -> str:
    found = _pick(role, names, asked, known, where, required=True)
    assert found is not None
    return found


def _pick(
    role: str, names: Sequence[str], asked: str | None, known: Sequence[str], where: str, *, required: bool
) -> str | None:
    if asked is not None:
        found = [name for name in names if name == asked]
    else:
        by_rank = sorted(
            (known.index(name.strip().lower()), name) for name in names if name.strip().lower() in known
        )
        found = [name for rank, name in by_rank if rank == by_rank[0][0]]
    if len(found) > 1:
        raise MissingColumn(f"{where}: {len(found)} columns are called {shown(found[0])!r}; one is needed.")
    if not found and required:
        wanted = repr(shown(asked)) if asked is not None else f"{role} (known as {', '.join(known)})"
        raise MissingColumn(
            f"{where}: no column {wanted}. Its columns: {shown(', '.join(names), 200)}.",
            f"Name it with --{role}-column.",
        )
    return found[0] if found else None
