"""Who took liquidity in a trade: +1 the buyer (the trade hit the ask), -1 the seller (it hit the bid)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from app.datasets.build.arrays import Floats, Signs
from app.datasets.build.errors import UnknownSide
from app.errors import shown

_SIDES = {
    "buy": 1,
    "b": 1,
    "buyer": 1,
    "1": 1,
    "+1": 1,
    "1.0": 1,
    "sell": -1,
    "s": -1,
    "seller": -1,
    "-1": -1,
    "-1.0": -1,
}
_MAKERS = {"true": -1, "1": -1, "t": -1, "false": 1, "0": 1, "f": 1}


def read_side(column: pa.Array, *, is_maker: bool, row_of: Callable[[int], str]) -> Signs:
    """Read a side column (buy/sell, b/s, 1/-1), or whether the buyer was the maker (true/false, 1/0).

    Raises UnknownSide with file, row and value.
    """
    known = _MAKERS if is_maker else _SIDES
    coded = column.cast(pa.string()).dictionary_encode()
    words = [word.strip().lower() for word in coded.dictionary.to_pylist()]
    signs: Signs = np.array([known.get(word, 0) for word in words], np.int8)[coded.indices.to_numpy()]
    unknown = np.flatnonzero(signs == 0)
    if len(unknown):
        row = int(unknown[0])
        raise UnknownSide(
            f"{row_of(row)}: {shown(column[row].as_py())!r} is no {'maker flag' if is_maker else 'side'}.",
            f"Known are {', '.join(known)}. --tick-rule ignores the column and goes by the price.",
        )
    return signs


class TickRule:
    """Tell the aggressor from the price: an uptick is a buy, a downtick a sell, no change as before.

    Trades before the first change of price count as buys. Keeps its state from batch to batch.
    Source: Lee and Ready, Inferring Trade Direction from Intraday Data, Journal of Finance 46 (1991).
    """

    def __init__(self) -> None:
        self._price: float | None = None
        self._sign = 1

    def sides(self, price: Floats) -> Signs:
        """The aggressor of each trade, given every trade before it."""
        before = np.concatenate(([price[0] if self._price is None else self._price], price[:-1]))
        change = np.sign(price - before).astype(np.int8)
        last_change = np.maximum.accumulate(np.where(change != 0, np.arange(len(change)), -1))
        signs: Signs = np.where(last_change < 0, np.int8(self._sign), change[last_change])
        self._price, self._sign = float(price[-1]), int(signs[-1])
        return signs
