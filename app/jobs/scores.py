"""Scores of a classifier, all from its confusion counts: old jobs get a new score too.

A confusion matrix is KxK counts: rows are labels, columns predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Confusion = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class against the rest. A ratio without a denominator is 0."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over all classes, in 0..1 but for mcc (-1..1).

    macro_f1: mean F1 of the classes that occur as label or prediction. balanced_accuracy: mean recall of the
    classes that occur as label. mcc: Matthews correlation for K classes; 0 when labels or predictions are all
    of one class. majority_accuracy: what always predicting the most frequent label would reach.
    """

    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    mcc: float
    majority_accuracy: float
    per_class: tuple[ClassScores, ...]


def score(confusion: Confusion) -> Scores:
    """Score a confusion matrix. Without samples every score is 0."""
    support = [sum(row) for row in confusion]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    hits = [row[k] for k, row in enumerate(confusion)]
    total = sum(support)
    per_class = tuple(
        ClassScores(precision=_ratio(h, p), recall=_ratio(h, s), f1=_ratio(2 * h, s + p), support=s)
        for h, s, p in zip(hits, support, predicted, strict=True)
    )
    return Scores(
        accuracy=_ratio(sum(hits), total),
        macro_f1=_mean([c.f1 for c, p in zip(per_class, predicted, strict=True) if c.support or p]),
        balanced_accuracy=_mean([c.recall for c in per_class if c.support]),
        mcc=_mcc(sum(hits), support, predicted),
        majority_accuracy=_ratio(max(support, default=0), total),
        per_class=per_class,
    )


def _mcc(num_hits: int, support: list[int], predicted: list[int]) -> float:
    """R_K of Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"."""
    total = sum(support)
    covariance = num_hits * total - sum(s * p for s, p in zip(support, predicted, strict=True))
    label_variance = total**2 - sum(s * s for s in support)
    prediction_variance = total**2 - sum(p * p for p in predicted)
    # Roots apart: their product can be too large for a float.
    return _ratio(covariance, math.sqrt(label_variance) * math.sqrt(prediction_variance))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _mean(values: list[float]) -> float:
    return _ratio(math.fsum(values), len(values))
