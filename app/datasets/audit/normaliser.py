"""Scaling that was fitted on all data: it tells training how high and how wild the future will be.

Standard: after (x - mean) / deviation the fitted rows have mean 0 and deviation 1 to rounding. Of rows that
were not the fitted ones both are off by their standard error, 1 / sqrt(N). So all rows within 1/1000 of that
error (or 2e-6, the rounding of float32; 2e-3 of float16), with the training rows ten times farther off, is a
fit on all rows; by chance it happens to an element with probability (8e-4)^2 < 1e-6.

Min-max: all rows span exactly [0, 1] or [-1, 1], both ends touched by at most 3 rows (or 0.1 %), under 1 % of
values being 0, and training does not touch both. Bounded features touch their bounds often or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from app.datasets.audit.collect import Collected
from app.datasets.audit.findings import Finding
from app.datasets.features import Features
from app.datasets.moments import Moments
from app.datasets.values import element_name
from app.errors import shown

MIN_ROWS = 100
_REMEDY = (
    "Store the features as they are and set data.normalize: it is fitted on training rows only and saved in"
    " the model."
)


def find_scaling(found: Collected, features: Features) -> Iterator[Finding]:
    """Report features scaled by all rows: by mean and deviation, or by extremes."""
    for find in (_standard, _min_max):
        for scope, whole in found.whole.items():
            train = found.train[scope]
            if not MIN_ROWS <= train.count.min() < whole.count.min():
                continue
            finding = find(whole, train, features, f" of group {shown(scope)}" if scope else "")
            if finding is not None:
                yield finding
                break


def _standard(whole: Moments, train: Moments, features: Features, where: str) -> Finding | None:
    floor = 2e-3 if features.dtype == "float16" else 2e-6
    num = int(whole.count.max())
    tolerance = max(1e-3 / sqrt(num), floor)
    is_exact = _is_unit(whole.mean, whole.deviation, whole.count, tolerance)
    is_off = (np.abs(train.mean) > 10 * tolerance) | (np.abs(train.deviation - 1) > 10 * tolerance)
    hits = np.flatnonzero(is_exact & is_off)
    if hits.size:
        at = int(hits[0])
        figures = (whole.mean[at], whole.deviation[at], train.mean[at], train.deviation[at])
        what = f"{hits.size} of {len(is_exact)} features, first {element_name(features, at)}: over"
    else:
        total, mean, deviation = whole.pooled()
        _, train_mean, train_deviation = train.pooled()
        # The elements of a row hang together: their number does not make the estimate finer.
        if total == num or not (abs(mean) < tolerance and abs(deviation - 1) < tolerance):
            return None
        if max(abs(train_mean), abs(train_deviation - 1)) <= 10 * tolerance:
            return None
        figures, what = (mean, deviation, train_mean, train_deviation), "all features together: over"
    return Finding(
        "normalised_on_all_data",
        "leak",
        f"{what} all rows{where} the mean is {figures[0]:.1e} and the deviation {figures[1]:.7f}, over"
        f" training rows {figures[2]:.4f} and {figures[3]:.4f}: they were normalised with figures of all"
        " rows, validation and test included.",
        _REMEDY,
        {
            "features": int(hits.size),
            "mean": float(figures[0]),
            "deviation": float(figures[1]),
            "train_mean": float(figures[2]),
            "train_deviation": float(figures[3]),
        },
    )


def _is_unit(
    mean: NDArray[np.float64], deviation: NDArray[np.float64], count: NDArray[np.int64], tolerance: float
) -> NDArray[np.bool_]:
    """Mean 0 and deviation 1, as statistics (N - 1) or NumPy (N) compute it."""
    sample = deviation * np.sqrt(count / np.maximum(count - 1, 1))
    is_one = (np.abs(deviation - 1) < tolerance) | (np.abs(sample - 1) < tolerance)
    found: NDArray[np.bool_] = (np.abs(mean) < tolerance) & is_one & (count > 1)
    return found


def _min_max(whole: Moments, train: Moments, features: Features, where: str) -> Finding | None:
    few = np.maximum(3, whole.count // 1000)
    spans = ((whole.low == 0) | (whole.low == -1)) & (whole.high == 1)
    rare = (whole.num_low <= few) & (whole.num_high <= few)
    zeros = whole.num_zero - np.where(whole.low == 0, whole.num_low, 0)
    is_dense = zeros < whole.count / 100
    is_beyond = (train.low > whole.low) | (train.high < whole.high)
    hits = np.flatnonzero(spans & rare & is_dense & is_beyond)
    if not hits.size:
        return None
    at = int(hits[0])
    return Finding(
        "scaled_on_all_data",
        "leak",
        f"{hits.size} of {len(spans)} features, first {element_name(features, at)}: all rows{where} span"
        f" exactly [{whole.low[at]:g}, {whole.high[at]:g}], touching the ends {int(whole.num_low[at])} and"
        f" {int(whole.num_high[at])} times, training rows only [{train.low[at]:.4f}, {train.high[at]:.4f}]:"
        " they were scaled with extremes of all rows.",
        _REMEDY,
        {
            "features": int(hits.size),
            "train_low": float(train.low[at]),
            "train_high": float(train.high[at]),
        },
    )
