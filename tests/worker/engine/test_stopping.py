"""Early stopping: which epoch is best, and when patience is out."""

from __future__ import annotations

import math

import pytest

from worker.engine.stopping import Stopping


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "bests", "stale"),
    [
        ([3.0, 2.0, 1.0], 2, 0.0, [1, 1, 1], [0, 0, 0]),
        ([1.0, 1.0, 2.0], 2, 0.0, [1, 0, 0], [0, 1, 2]),
        ([1.0, 2.0, 0.5], 2, 0.0, [1, 0, 1], [0, 1, 0]),
        # Better, but by too little to renew the patience: still the best.
        ([1.0, 0.9, 0.85, 0.7], 5, 0.2, [1, 1, 1, 1], [0, 1, 2, 0]),
        ([math.nan, 1.0, math.nan], 5, 0.0, [0, 1, 0], [1, 0, 1]),
        ([math.inf, 1.0], 5, 0.0, [0, 1], [1, 0]),
    ],
    ids=["falling", "flat", "back", "min_delta", "nan", "inf"],
)
def test_best_and_patience(
    losses: list[float], patience: int, min_delta: float, bests: list[int], stale: list[int]
) -> None:
    stopping = Stopping(patience, min_delta)
    for loss, is_best, stale_epochs in zip(losses, bests, stale, strict=True):
        assert stopping.update(loss) == bool(is_best)
        assert stopping.stale_epochs == stale_epochs
        assert stopping.is_due == (stale_epochs >= patience)


def test_no_patience_never_stops() -> None:
    stopping = Stopping(None)
    for _ in range(100):
        stopping.update(1.0)
    assert not stopping.is_due
