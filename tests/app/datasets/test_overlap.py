"""How far labels look ahead and how much they overlap, against the plain definitions."""

from __future__ import annotations

import time
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets import overlap
from app.datasets.overlap import Lengths, Uniqueness
from tests.app.datasets.make import SECOND, START_S


def worth(times: np.ndarray, ends: np.ndarray, pieces: int = 1) -> float:
    found = Uniqueness()
    for piece in np.array_split(np.arange(len(times)), pieces):
        found.add(times[piece], ends[piece])
    return found.worth


def plain(times: list[int], ends: list[int]) -> float:
    """The definition, moment by moment: the mean over each label's life of 1 / open labels."""
    open_at = {
        moment: sum(t <= moment < e for t, e in zip(times, ends, strict=True))
        for moment in range(min(times), max(ends))
    }
    return sum(
        sum(1 / open_at[moment] for moment in range(t, e)) / (e - t) for t, e in zip(times, ends, strict=True)
    )


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=30), st.integers(1, 5))
def test_labels_are_worth_their_average_uniqueness(labels: list[tuple[int, int]], pieces: int) -> None:
    times = np.cumsum([step for step, _ in labels]) + START_S * SECOND
    ends = times + [length for _, length in labels]
    expected = plain(times.tolist(), np.maximum(ends, times + 1).tolist())
    assert worth(times, ends, pieces) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("length_s", "expected"), [(1, 1000.0), (10, 100.9), (500, 3.0)])
def test_labels_of_a_fixed_length_are_worth_as_many_as_fit_side_by_side(
    length_s: int, expected: float
) -> None:
    times = (START_S + np.arange(1000)) * SECOND
    assert worth(times, times + length_s * SECOND, pieces=7) == pytest.approx(expected, rel=0.15)


def test_labels_that_end_at_once_do_not_blur_the_others() -> None:
    times = (START_S + np.arange(100_000)) * SECOND
    at_once = np.arange(len(times)) % 2 == 0
    ends = times + np.where(at_once, 0, 1000 * SECOND)
    alone = worth(times[~at_once], ends[~at_once])
    expected = sum(1 / (1 + min(number, 500)) for number in range(at_once.sum()))
    assert worth(times, ends, pieces=3) - alone == pytest.approx(expected, rel=1e-3)


def test_more_open_labels_than_are_kept_change_little() -> None:
    draw = np.random.default_rng(0)
    times = (START_S + np.arange(20_000)) * SECOND
    ends = times + draw.integers(1, 2000, len(times)) * SECOND
    whole = worth(times, ends, pieces=20)
    with patch.object(overlap, "MAX_OPEN", 128):
        assert worth(times, ends, pieces=20) == pytest.approx(whole, rel=0.01)


def test_memory_does_not_grow_with_open_labels() -> None:
    found = Uniqueness()
    with patch.object(overlap, "MAX_OPEN", 100):
        for step in range(50):
            times = (START_S + np.arange(step * 100, step * 100 + 100)) * SECOND
            found.add(times, times + 10**9 * SECOND)
            assert len(found._ends_ns) <= 200
    assert found.worth == pytest.approx(1.0, rel=1e-3)


def test_a_million_labels_take_no_time_to_speak_of() -> None:
    times = (START_S + np.arange(1_000_000)) * SECOND
    ends = times + np.random.default_rng(0).integers(1, 3000, len(times)) * SECOND
    begun = time.process_time()
    worth(times, ends, pieces=16)
    assert time.process_time() - begun < 20  # about half a second


def test_the_median_length_is_that_of_the_lengths() -> None:
    draw = np.random.default_rng(0)
    for lengths_s in (draw.integers(0, 60, 999), draw.exponential(1000.0, 999), np.full(10, 300), [0, 0, 7]):
        lengths = np.rint(np.asarray(lengths_s) * SECOND).astype(np.int64)
        found = Lengths()
        for piece in np.array_split(lengths, 4):
            found.add(piece)
        assert found.longest_ns == lengths.max()
        assert found.median_ns == pytest.approx(np.sort(lengths)[(len(lengths) - 1) // 2], rel=1e-3)


def test_lengths_that_repeat_are_exact() -> None:
    found = Lengths()
    found.add(np.array([-5, 60 * SECOND, 60 * SECOND, 2**62], np.int64))
    assert (found.median_ns, found.longest_ns) == (60 * SECOND, 2**62)
