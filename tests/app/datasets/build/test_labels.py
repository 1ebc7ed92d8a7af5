"""Labels: the vectorised triple barrier against a walk from bar to bar."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.build.bars import BarBuilder, Bars, Cells, join_bars
from app.datasets.build.labels import LONG, NEUTRO, STOP, SUPER_LONG, Barriers, Labeller
from tests.app.datasets.build import reference
from tests.app.datasets.build.make import TICK, random_trades

SECOND = 10**9


def bars_of(*high_low_close: tuple[float, float, float], times: list[int] | None = None) -> Bars:
    """Bars in levels around 100.0, one per second; the first is the one that is labelled."""
    high, low, close = (100 + np.array(part) * TICK for part in zip(*high_low_close, strict=True))
    num = len(close)
    none = np.zeros(0)
    time_ns = np.array(times if times is not None else range(num), np.int64) * SECOND
    cells = Cells(none.astype(np.int64), none, none, none)
    return Bars(time_ns, close, high, low, np.zeros(num + 1, np.int64), cells)


def first_label(bars: Bars, horizon_bars: int = 3) -> tuple[int, int]:
    """Class of the first bar under stop 4, target 4, higher target 8, and the second it was certain."""
    rows = Labeller(Barriers(4, 4, 8, horizon_bars, None), TICK).push(bars)
    assert rows is not None
    return int(rows.label[0]), int(rows.label_end_ns[0]) // SECOND


FLAT = (0.0, 0.0, 0.0)
STORIES = {
    "nothing touched": ([(3, -3, 0), FLAT, FLAT], NEUTRO, 3),
    "stop first": ([FLAT, (0, -4, -4), (9, 0, 9)], STOP, 2),
    "exactly at the target is a touch": ([(4, 0, 4), FLAT, FLAT], LONG, 3),
    "target, then the horizon ends": ([(5, 0, 5), (7, 0, 0), FLAT], LONG, 3),
    "target, then the stop": ([(5, 0, 5), (0, -4, -4), (9, 9, 9)], LONG, 2),
    "target, then the higher one": ([(5, 0, 5), (8, 0, 8), FLAT], SUPER_LONG, 2),
    "both targets in one bar": ([(9, 0, 9), FLAT, FLAT], SUPER_LONG, 1),
    "stop and target in one bar": ([(5, -5, 0), (9, 0, 9), FLAT], STOP, 1),
    "stop and higher target in one bar": ([(9, -5, 0), FLAT, FLAT], STOP, 1),
    "target, then higher target and stop in one bar": ([(5, 0, 5), (9, -5, 0), FLAT], LONG, 2),
    "touch after the horizon does not count": ([FLAT, FLAT, FLAT, (9, -9, 0)], NEUTRO, 3),
    "touch at the last bar counts": ([FLAT, FLAT, (8, 0, 8)], SUPER_LONG, 3),
    "the bar's own range does not count": ([FLAT, FLAT, FLAT], NEUTRO, 3),
}


@pytest.mark.parametrize(("ahead", "label", "certain_at"), STORIES.values(), ids=STORIES.keys())
def test_label_of(ahead: list[tuple[float, float, float]], label: int, certain_at: int) -> None:
    assert first_label(bars_of((20, -20, 0), *ahead)) == (label, certain_at)


def test_tail_without_a_full_horizon_has_no_label_even_when_touched() -> None:
    labeller = Labeller(Barriers(4, 4, 8, 3, None), TICK)
    assert labeller.push(bars_of(FLAT, (9, 0, 9), FLAT)) is None


@pytest.mark.parametrize(("last_s", "num_rows"), [(10, 0), (11, 1)], ids=["at its end", "after its end"])
def test_horizon_in_seconds_is_complete_once_a_bar_closes_after_it(last_s: int, num_rows: int) -> None:
    bars = bars_of(FLAT, FLAT, FLAT, times=[0, 4, last_s])
    rows = Labeller(Barriers(4, 4, 8, None, 10 * SECOND), TICK).push(bars)
    assert (0 if rows is None else len(rows)) == num_rows
    if rows is not None:
        assert rows.label_end_ns.tolist() == [10 * SECOND]


def test_bar_that_closes_as_the_horizon_in_seconds_ends_counts() -> None:
    bars = bars_of(FLAT, (8, 0, 8), FLAT, times=[0, 10, 11])
    rows = Labeller(Barriers(4, 4, 8, None, 10 * SECOND), TICK).push(bars)
    assert rows is not None
    assert rows.label.tolist() == [SUPER_LONG]


BARRIERS = st.tuples(
    st.sampled_from([1.0, 3.0, 6.0]), st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([6.0, 9.0])
)
HORIZONS = st.one_of(
    st.tuples(st.integers(1, 70), st.none()),
    st.tuples(st.none(), st.integers(1, 60).map(lambda s: s * SECOND)),
)


@settings(max_examples=80, deadline=None)
@given(
    num=st.integers(20, 500),
    seed=st.integers(0, 2**32),
    barriers=BARRIERS,
    horizon=HORIZONS,
    borders=st.lists(st.integers(0, 500), max_size=6),
)
def test_labels_are_those_of_a_walk_however_the_bars_arrive(
    num: int,
    seed: int,
    barriers: tuple[float, float, float],
    horizon: tuple[int | None, int | None],
    borders: list[int],
) -> None:
    trades = random_trades(num, seed, max_step=1, max_gap_ms=900)
    bars = BarBuilder(3, None, TICK).push(trades)
    known = reference.bars(trades, TICK, bar_trades=3, bar_ns=None)
    walked = [
        reference.label(known, i, TICK, barriers, horizon_bars=horizon[0], horizon_ns=horizon[1])
        for i in range(len(known))
    ]
    expected = [found for found in walked if found is not None]

    labeller = Labeller(Barriers(*barriers, *horizon), TICK)
    edges = [0, *sorted(min(border, len(bars)) for border in borders), len(bars)]
    pushed = [labeller.push(bars.slice(a, b)) for a, b in pairwise(edges) if b > a]
    rows = [part for part in pushed if part is not None]

    found = [
        pair for part in rows for pair in zip(part.label.tolist(), part.label_end_ns.tolist(), strict=True)
    ]
    assert found == expected
    if rows:
        labelled = join_bars([part.bars for part in rows])
        assert labelled.time_ns.tolist() == bars.time_ns[: len(expected)].tolist()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.integers(1, 99), horizon=HORIZONS)
def test_label_depends_on_no_bar_after_label_end(
    seed: int, cut: int, horizon: tuple[int | None, int | None]
) -> None:
    bars = BarBuilder(3, None, TICK).push(random_trades(300, seed, max_step=1, max_gap_ms=900))
    future = bars.slice(cut, 100)
    changed = Bars(
        future.time_ns, future.close[::-1], future.high + 50, future.low - 50, future.starts, future.cells
    )
    barriers = Barriers(3, 3, 6, *horizon)
    truth = Labeller(barriers, TICK).push(bars)
    other = Labeller(barriers, TICK).push(join_bars([bars.slice(0, cut), changed]))
    if truth is None or other is None:
        return
    # Bars that close at one instant are one instant's knowledge: only what was certain before the cut counts.
    is_certain = truth.label_end_ns[: len(other)] < bars.time_ns[cut]
    assert (truth.label[: len(other)] == other.label)[is_certain].all()
    assert (truth.label_end_ns[: len(other)] == other.label_end_ns)[is_certain].all()
