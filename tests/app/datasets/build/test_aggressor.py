"""The aggressor: read from a column, or told by the tick rule."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.datasets.build.aggressor import TickRule, read_side
from app.datasets.build.errors import UnknownSide


def test_tick_rule_keeps_the_last_direction_while_the_price_stands() -> None:
    prices = np.array([5.0, 5.0, 4.0, 4.0, 6.0, 6.0, 5.0])
    assert TickRule().sides(prices).tolist() == [1, 1, -1, -1, 1, 1, -1]


@given(
    prices=st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=60),
    borders=st.lists(st.integers(0, 60), max_size=8),
)
def test_tick_rule_is_that_of_a_loop_however_the_trades_arrive(
    prices: list[float], borders: list[int]
) -> None:
    expected, sign = [], 1
    for before, price in zip([prices[0], *prices], prices, strict=False):
        sign = 1 if price > before else -1 if price < before else sign
        expected.append(sign)

    rule = TickRule()
    edges = [0, *sorted(min(border, len(prices)) for border in borders), len(prices)]
    found = [rule.sides(np.array(prices[a:b])) for a, b in pairwise(edges) if b > a]
    assert np.concatenate(found).tolist() == expected


@pytest.mark.parametrize(
    ("values", "is_maker"),
    [
        (["buy", " Sell ", "BUY"], False),
        (["b", "s", "B"], False),
        ([1, -1, 1], False),
        ([1.0, -1.0, 1.0], False),
        ([False, True, False], True),
        (["False", "TRUE", "false"], True),
        ([0, 1, 0], True),
    ],
    ids=str,
)
def test_side_is_read_from(values: list[object], is_maker: bool) -> None:
    assert read_side(pa.array(values), is_maker=is_maker, row_of=str).tolist() == [1, -1, 1]


def test_unknown_side_is_named_with_its_row() -> None:
    with pytest.raises(UnknownSide, match=r"row 2: 'hold' is no side") as caught:
        read_side(pa.array(["buy", "sell", "hold"]), is_maker=False, row_of=lambda i: f"row {i}")
    assert "--tick-rule" in str(caught.value.hint)
