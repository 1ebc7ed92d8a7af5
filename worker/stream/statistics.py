"""Location and spread of each feature in one pass, from parts that can be merged in any grouping.

Shapes: R rows, F features of a row (flat), K values of a feature on a level, Q quantiles, N values in all.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024  # in float64


class Moments:
    """Mean and variance in float64.

    Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm (1979), formulas 2.1.
    """

    def __init__(self, num_features: int) -> None:
        self.count = 0
        self.mean_F = torch.zeros(num_features, dtype=torch.float64)
        self._squares_F = torch.zeros(num_features, dtype=torch.float64)  # of the distances to the mean

    def add(self, rows_RF: Tensor) -> None:
        """Take in rows, [R, F], all finite."""
        for part_RF in torch.split(rows_RF, ROWS_AT_ONCE) if len(rows_RF) else ():
            variance_F, mean_F = torch.var_mean(part_RF.double(), dim=0, correction=0)
            self._merge(len(part_RF), mean_F, variance_F * len(part_RF))

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        self._merge(other.count, other.mean_F, other._squares_F)

    def location_and_spread(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation (of the population), [F] each."""
        return self.mean_F, (self._squares_F / max(self.count, 1)).sqrt()

    def _merge(self, count: int, mean_F: Tensor, squares_F: Tensor) -> None:
        if not count:
            return
        total = self.count + count
        delta_F = mean_F - self.mean_F
        self.mean_F = self.mean_F + delta_F * (count / total)
        self._squares_F = self._squares_F + squares_F + delta_F.square() * (self.count * count / total)
        self.count = total


class Quantiles:
    """Median and interquartile range, from a sketch that keeps k values of each power-of-two weight.

    A full level is sorted and every other value goes up with twice the weight, so that one compaction moves
    a rank by at most the weight: a rank among n rows is off by at most log2(n / k) / k of n for certain
    (1.2 % at 5 million rows, k = 1024), and by about 1 / k of n (0.1 %) typically, since a coin chooses which
    of each pair goes up. Exact below k rows.
    Source: Agarwal et al., Mergeable Summaries (PODS 2012), section 3.2; Karnin, Lang, Liberty (FOCS 2016).
    """

    def __init__(self, num_features: int, capacity: int | None = None) -> None:
        """capacity: k, even; null = 1024, less for more than 1024 features, to bound memory."""
        self.capacity = capacity or max(128, min(1024, 2**20 // num_features // 2 * 2))
        self.count = 0
        self._levels_FK = [torch.empty(num_features, 0)]
        self._coins = torch.Generator().manual_seed(0)

    def add(self, rows_RF: Tensor) -> None:
        """Take in rows, [R, F], all finite."""
        first = 0
        while first < len(rows_RF):
            part_RF = rows_RF[first : first + self.capacity - self._levels_FK[0].shape[1]]
            self._put(0, part_RF.t())
            first += len(part_RF)
        self.count += len(rows_RF)

    def merge(self, other: Quantiles) -> None:
        """Take in what another one has seen; the errors add up."""
        for level, values_FK in enumerate(other._levels_FK):
            self._put(level, values_FK)
        self.count += other.count

    def rank_error(self) -> float:
        """Return the largest error of a rank, as a fraction of the rows seen by this sketch alone."""
        return max(0.0, log2(max(self.count, 1) / self.capacity) / self.capacity)

    def at(self, fractions_Q: Tensor) -> Tensor:
        """Return these quantiles of each feature, interpolated between ranks, float64 [Q, F]."""
        values_FN = torch.cat(self._levels_FK, dim=1).double()
        weights_N = torch.cat([torch.full((v.shape[1],), 2.0**i) for i, v in enumerate(self._levels_FK)])
        values_FN, order_FN = values_FN.sort(dim=1)
        weights_FN = weights_N.double()[order_FN]
        # A value stands in the middle of the ranks it stands for.
        ranks_FN = weights_FN.cumsum(1) - (weights_FN + 1) / 2
        wanted_FQ = (fractions_Q.double() * (self.count - 1)).expand(len(values_FN), -1).contiguous()
        right_FQ = torch.searchsorted(ranks_FN, wanted_FQ).clamp(1, max(1, values_FN.shape[1] - 1))
        right_FQ = right_FQ.clamp(max=values_FN.shape[1] - 1)
        left_FQ = (right_FQ - 1).clamp(min=0)
        low_FQ, high_FQ = values_FN.gather(1, left_FQ), values_FN.gather(1, right_FQ)
        start_FQ, end_FQ = ranks_FN.gather(1, left_FQ), ranks_FN.gather(1, right_FQ)
        share_FQ = ((wanted_FQ - start_FQ) / (end_FQ - start_FQ).clamp(min=1e-12)).clamp(0, 1)
        return (low_FQ + (high_FQ - low_FQ) * share_FQ).t()

    def location_and_spread(self) -> tuple[Tensor, Tensor]:
        """Return the median and the interquartile range, [F] each."""
        low_F, median_F, high_F = self.at(torch.tensor([0.25, 0.5, 0.75]))
        return median_F, high_F - low_F

    def _put(self, level: int, values_FK: Tensor) -> None:
        if level == len(self._levels_FK):
            self._levels_FK.append(values_FK.new_empty(len(values_FK), 0))
        held_FK = torch.cat([self._levels_FK[level], values_FK], dim=1)
        if held_FK.shape[1] >= self.capacity:
            even = held_FK.shape[1] // 2 * 2
            coin = int(torch.randint(2, (), generator=self._coins))
            self._put(level + 1, held_FK[:, :even].sort(dim=1).values[:, coin::2])
            held_FK = held_FK[:, even:]
        self._levels_FK[level] = held_FK
