"""Made-up markets whose labels look ahead honestly, and one way each of spoiling them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.app.datasets.make import SECOND, START_S

Columns = dict[str, Any]
HORIZON = 10


def market(num_rows: int = 3000, seed: int = 0, horizon: int = HORIZON, step_s: int = 1) -> Columns:
    """A random walk, its return, a moving average and lags of it, autocorrelated activity and noise.

    The label says whether the price ends `horizon` rows later below, within or above a band; label_end when
    that is known. All of it is known at its row but the label.
    """
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal(num_rows + horizon)
    price = 100 + np.cumsum(steps)
    known = price[:num_rows]
    move = price[horizon:] - known
    band = 0.5 * np.sqrt(horizon)
    times = (START_S + np.arange(num_rows) * step_s) * SECOND
    return {
        "timestamp": times,
        "label": np.where(move < -band, 0, np.where(move > band, 2, 1)),
        "label_end": times + horizon * step_s * SECOND,
        "price": known,
        "change": steps[:num_rows],
        "average": trailing(known, 8),
        "lag": np.concatenate([known[:1], known[:-1]]),
        "activity": autoregressive(rng, num_rows, 0.9),
        "noise": rng.standard_normal(num_rows),
    }


def table_of(columns: Columns) -> pa.Table:
    """The columns as Arrow: times with their zone, labels small, features float32."""
    kinds = {"label": pa.int8(), "group": pa.string()}
    stamps = ("timestamp", "label_end")
    return pa.table(
        {
            name: pa.array(np.asarray(values, dtype=np.int64), pa.timestamp("ns", tz="UTC"))
            if name in stamps
            else pa.array(values, kinds.get(name, pa.float32()))
            for name, values in columns.items()
        }
    )


def trailing(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The mean of the last `size` values, of fewer at the beginning."""
    sums = np.concatenate([np.zeros(size), np.cumsum(values)])
    num = np.minimum(np.arange(len(values)) + 1, size)
    means: NDArray[np.float64] = (sums[size:] - sums[:-size]) / num
    return means


def autoregressive(rng: np.random.Generator, num_rows: int, memory: float) -> NDArray[np.float64]:
    """x[t] = memory x[t-1] + noise."""
    shocks = rng.standard_normal(num_rows)
    values = np.zeros(num_rows)
    for row in range(1, num_rows):
        values[row] = memory * values[row - 1] + shocks[row]
    return values


# Leaks: each takes an honest market and spoils it.


def ahead(values: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    return np.concatenate([values[rows:], np.full(rows, values[-1])])


def label_itself(c: Columns) -> Columns:
    return c | {"signal": c["label"] * 2.5 - 1}


def one_hot_of_label(c: Columns) -> Columns:
    return c | {"is_up": (c["label"] == 2) * 1.0}


def noisy_code_of_label(c: Columns) -> Columns:
    return c | {"score": c["label"] + 0.1 * np.random.default_rng(5).standard_normal(len(c["label"]))}


def future_return(c: Columns) -> Columns:
    return c | {"momentum": ahead(c["price"], HORIZON) - c["price"]}


def next_price(c: Columns) -> Columns:
    return c | {"quote": ahead(c["price"], 1)}


def centred_average(c: Columns) -> Columns:
    sums = np.concatenate([[0.0], np.cumsum(np.pad(c["price"], 5, mode="edge"))])
    return c | {"smooth": (sums[11:] - sums[:-11]) / 11}


def close_of_the_hour(c: Columns) -> Columns:
    last = np.minimum(np.arange(len(c["price"])) // 16 * 16 + 15, len(c["price"]) - 1)
    return c | {"close": c["price"][last]}


def noisy_future(c: Columns) -> Columns:
    noise = np.random.default_rng(6).standard_normal(len(c["price"]))
    return c | {"alpha": ahead(c["price"], 5) - c["price"] + 1.5 * noise}


def backward_filled(c: Columns) -> Columns:
    at = np.arange(len(c["price"]))
    return c | {"filled": c["price"][np.minimum(-(-at // 6) * 6, len(at) - 1)]}


def normalised_on_all(c: Columns) -> Columns:
    return c | {"price": (c["price"] - c["price"].mean()) / c["price"].std()}


def scaled_on_all(c: Columns) -> Columns:
    price = c["price"] + np.linspace(0, 600, len(c["price"]))
    return c | {"price": (price - price.min()) / (price.max() - price.min())}


def repeated_period(c: Columns) -> Columns:
    first, copy = slice(300, 500), slice(len(c["price"]) - 300, len(c["price"]) - 100)
    spoiled = {name: np.array(values) for name, values in c.items()}
    for name in set(c) - {"timestamp", "label_end"}:
        spoiled[name][copy] = spoiled[name][first]
    return spoiled


def scattered_copies(c: Columns) -> Columns:
    rng = np.random.default_rng(7)
    num = len(c["price"])
    into, of = rng.choice(num // 2, 60, replace=False), num - 1 - rng.choice(num // 6, 60, replace=False)
    spoiled = {name: np.array(values) for name, values in c.items()}
    for name in set(c) - {"timestamp", "label_end"}:
        spoiled[name][into] = spoiled[name][of]
    return spoiled


def no_label_end(c: Columns) -> Columns:
    return {name: values for name, values in c.items() if name != "label_end"}


def label_end_too_early(c: Columns) -> Columns:
    return c | {"label_end": c["timestamp"] + 2 * SECOND}


def label_end_before_row(c: Columns) -> Columns:
    return c | {"label_end": c["timestamp"] - 3600 * SECOND}


def label_of_the_next_row(c: Columns) -> Columns:
    return c | {"state": ahead(c["label"] * 1.0, 1)}


def label_not_known_yet(c: Columns) -> Columns:
    past = np.concatenate([c["label"][:3], c["label"][:-3]]) * 1.0
    return c | {"previous": past}


LEAKS: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "the label as a feature": (label_itself, "feature_is_label"),
    "one class as a feature": (one_hot_of_label, "feature_encodes_label"),
    "a noisy code of the label": (noisy_code_of_label, "feature_encodes_label"),
    "the return until the label's end": (future_return, "feature_encodes_label"),
    "the price of the next row": (next_price, "feature_knows_future"),
    "a centred average": (centred_average, "feature_knows_future"),
    "the close of the running hour": (close_of_the_hour, "feature_knows_future"),
    "a noisy forecast from the future": (noisy_future, "feature_knows_future"),
    "backward fill": (backward_filled, "feature_knows_future"),
    "normalised on all rows": (normalised_on_all, "normalised_on_all_data"),
    "scaled between extremes of all rows": (scaled_on_all, "scaled_on_all_data"),
    "a period stored twice": (repeated_period, "duplicate_windows"),
    "validation rows copied into training": (scattered_copies, "duplicate_rows"),
    "no horizon": (no_label_end, "no_horizon"),
    "a horizon too short": (label_end_too_early, "horizon_too_short"),
    "label ends before their rows": (label_end_before_row, "label_end_before_row"),
    "the label of the next row": (label_of_the_next_row, "feature_is_future_label"),
    "a past label not known yet": (label_not_known_yet, "feature_is_unknown_label"),
}
