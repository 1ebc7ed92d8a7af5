"""Scores of a classifier, all from its confusion counts: old jobs get a new score too.

A confusion matrix is KxK counts: rows are labels, columns predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Confusion = Sequence[Sequence[int]]


def scores(confusion: Confusion, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Score a confusion matrix, all in 0..1 but for mcc (-1..1). A ratio without a denominator is 0.

    classes: names of the K classes; null = their numbers. macro_f1: mean F1 of the classes that occur as
    label or prediction. balanced_accuracy: mean recall of the classes that occur as label. mcc: Matthews
    correlation for K classes. majority_accuracy: what always answering the most frequent label would reach.
    """
    names = classes or [str(k) for k in range(len(confusion))]
    support = [sum(row) for row in confusion]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    hits = [row[k] for k, row in enumerate(confusion)]
    per_class = {
        name: {
            "precision": _ratio(hits[k], predicted[k]),
            "recall": _ratio(hits[k], support[k]),
            "f1": _ratio(2 * hits[k], support[k] + predicted[k]),
            "support": support[k],
        }
        for k, name in enumerate(names)
    }
    by_class = list(per_class.values())
    return {
        "accuracy": _ratio(sum(hits), sum(support)),
        "macro_f1": _mean([by_class[k]["f1"] for k in range(len(names)) if support[k] or predicted[k]]),
        "balanced_accuracy": _mean([by_class[k]["recall"] for k in range(len(names)) if support[k]]),
        "mcc": _mcc(sum(hits), support, predicted),
        "majority_accuracy": _ratio(max(support, default=0), sum(support)),
        "per_class": per_class,
    }


def _mcc(num_hits: int, support: list[int], predicted: list[int]) -> float:
    """Compute R_K (Gorodkin 2004, Computational Biology and Chemistry 28, 367-374)."""
    total = sum(support)
    covariance = num_hits * total - sum(s * p for s, p in zip(support, predicted, strict=True))
    label_variance = total**2 - sum(s * s for s in support)
    prediction_variance = total**2 - sum(p * p for p in predicted)
    return _ratio(covariance, math.sqrt(label_variance) * math.sqrt(prediction_variance))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _mean(values: list[float]) -> float:
    return _ratio(math.fsum(values), len(values))
