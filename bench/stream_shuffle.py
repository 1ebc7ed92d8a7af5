"""How well the block shuffle mixes labels, against time order and a full shuffle.

    python -m bench.stream_shuffle

200,000 labels that persist (0.97), their rates constant or drifting with a period of a third
of the windows. Prints the autocorrelation of "is class 0" at lags 1 and 15, and the variance of its share in
batches of 15 over that of independent draws (1 = as independent).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.stream.shuffle import Shuffle

WINDOWS, BATCH, PERSISTENCE = 200_000, 15, 0.97


def main() -> None:
    """Print one line for each order, stationary and drifting."""
    rng = np.random.default_rng(0)
    orders = {"time order": np.arange(WINDOWS)}
    for buffer, run in ((1024, 1), (4096, 1), (16384, 1), (16384, 8), (16384, 32)):
        orders[f"block, buffer {buffer}, run {run}"] = block_order(buffer, run)
    orders["full shuffle"] = rng.permutation(WINDOWS)
    wave = np.sin(np.arange(WINDOWS) / WINDOWS * 6 * np.pi)
    labels = [is_first_class(rng, 0.5 + drift * wave) for drift in (0.0, 0.4)]
    for name, order in orders.items():
        found = (
            f"{correlated(y[order], 1):.3f} / {correlated(y[order], 15):.3f}, {spread(y[order]):.2f}"
            for y in labels
        )
        print(f"| {name} | " + " | ".join(found) + " |")


def block_order(buffer: int, run: int) -> NDArray[np.int64]:
    shuffle, starts = Shuffle(buffer, run, 0), range(0, WINDOWS, buffer)
    return np.concatenate([s + shuffle.order(1, n, min(buffer, WINDOWS - s)) for n, s in enumerate(starts)])


def is_first_class(rng: Any, rate_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw anew with probability 1 - PERSISTENCE, else keep the last draw."""
    draws_N = rng.random(WINDOWS) < rate_N
    last_N = np.maximum.accumulate(np.where(rng.random(WINDOWS) < PERSISTENCE, 0, np.arange(WINDOWS)))
    return draws_N[last_N].astype(np.float64)


def correlated(y_N: NDArray[np.float64], lag: int) -> float:
    centered_N = y_N - y_N.mean()
    return float((centered_N[lag:] * centered_N[:-lag]).mean() / y_N.var())


def spread(y_N: NDArray[np.float64]) -> float:
    shares = y_N[: WINDOWS // BATCH * BATCH].reshape(-1, BATCH).mean(1)
    return float(shares.var() / (y_N.mean() * (1 - y_N.mean()) / BATCH))


if __name__ == "__main__":
    main()
