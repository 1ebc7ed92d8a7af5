"""Mean, deviation and extremes of every element of a row, mergeable, over finite values.

Shapes: N rows, E elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOAT16_MAX = 65504.0
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Moments:
    """Counts, mean, sum of squared deviations, extremes and how often they and 0 occur.

    num_bad: values that are not finite; num_large: values beyond float16.

    Merged in pairs. Source: Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance.
    """

    def __init__(self, num_elements: int) -> None:
        self.count = np.zeros(num_elements, np.int64)
        self.mean = np.zeros(num_elements)
        self.squares = np.zeros(num_elements)
        self.low = np.full(num_elements, np.inf)
        self.high = np.full(num_elements, -np.inf)
        self.num_low = np.zeros(num_elements, np.int64)
        self.num_high = np.zeros(num_elements, np.int64)
        self.num_zero = np.zeros(num_elements, np.int64)
        self.num_bad = np.zeros(num_elements, np.int64)
        self.num_large = np.zeros(num_elements, np.int64)

    def add(self, values_NE: NDArray[Any]) -> None:
        """Add rows; what is not finite as float32 is counted apart (num_bad)."""
        if not len(values_NE):
            return
        values = values_NE.astype(np.float64)
        # What float32 cannot hold is infinite to a model.
        finite = np.abs(values) <= FLOAT32_MAX
        if finite.all():
            count = np.full(values.shape[1], len(values))
            low, high = values.min(axis=0), values.max(axis=0)
            mean = values.mean(axis=0)
            squares = np.square(values - mean).sum(axis=0)
        else:
            self.num_bad += len(values) - finite.sum(axis=0)
            count = finite.sum(axis=0)
            low = np.where(finite, values, np.inf).min(axis=0)
            high = np.where(finite, values, -np.inf).max(axis=0)
            values = np.where(finite, values, np.nan)
            mean = np.nansum(values, axis=0) / np.maximum(count, 1)
            squares = np.nansum(np.square(values - mean), axis=0)
        self.num_large += (np.abs(values) > FLOAT16_MAX).sum(axis=0)
        self.num_zero += (values == 0).sum(axis=0)
        self._merge_ends(low, (values == low).sum(axis=0), high, (values == high).sum(axis=0))
        total = np.maximum(self.count + count, 1)
        shift = mean - self.mean
        self.squares += squares + np.square(shift) * self.count * count / total
        self.mean += shift * count / total
        self.count += count

    @property
    def deviation(self) -> Floats:
        """The standard deviation of each element (of the whole population)."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))

    def pooled(self) -> tuple[int, float, float]:
        """Count, mean and deviation of all elements together."""
        total = int(self.count.sum())
        if not total:
            return 0, 0.0, 0.0
        mean = float((self.count * self.mean).sum() / total)
        squares = float((self.squares + self.count * np.square(self.mean - mean)).sum())
        return total, mean, float(np.sqrt(squares / total))

    def _merge_ends(
        self, low: Floats, num_low: NDArray[np.int64], high: Floats, num_high: NDArray[np.int64]
    ) -> None:
        self.num_low = np.where(low < self.low, num_low, self.num_low + np.where(low == self.low, num_low, 0))
        self.num_high = np.where(
            high > self.high, num_high, self.num_high + np.where(high == self.high, num_high, 0)
        )
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
