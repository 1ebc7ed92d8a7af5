"""Scores of a classifier, from its confusion counts, and of what needs no model. Old jobs get a new one too.

A confusion matrix is KxK counts: rows are labels, columns predictions. The baselines know the training split
alone, as a model does: how often each class occurs in the split they are judged on is not theirs to know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Confusion = Sequence[Sequence[int]]
Counts = Sequence[int]  # samples of each class


@dataclass(frozen=True, slots=True)
class Margins:
    """What all scores are of: 3 K of the K x K counts of a confusion matrix."""

    hits: Counts  # the diagonal
    support: Counts  # samples by label
    predicted: Counts  # samples by prediction

    @classmethod
    def of(cls, confusion: Confusion) -> Margins:
        """Count the hits, labels and predictions of each class."""
        return cls(
            [row[k] for k, row in enumerate(confusion)],
            [sum(row) for row in confusion],
            [sum(column) for column in zip(*confusion, strict=True)],
        )


def scores(confusion: Confusion | Margins, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Score a confusion matrix, all in 0..1 but for mcc (-1..1). A ratio without a denominator is 0.

    classes: names of the K classes; null = their numbers. macro_f1: mean F1 of the classes that occur as
    label or prediction. balanced_accuracy: mean recall of the classes that occur as label. mcc: Matthews
    correlation for K classes.
    """
    margins = confusion if isinstance(confusion, Margins) else Margins.of(confusion)
    hits, support, predicted = margins.hits, margins.support, margins.predicted
    names = classes or [str(k) for k in range(len(support))]
    by_class = [
        {
            "precision": _ratio(hits[k], predicted[k]),
            "recall": _ratio(hits[k], support[k]),
            "f1": _ratio(2 * hits[k], support[k] + predicted[k]),
            "support": support[k],
        }
        for k in range(len(support))
    ]
    return {
        "accuracy": _ratio(sum(hits), sum(support)),
        "macro_f1": _mean([by_class[k]["f1"] for k in range(len(names)) if support[k] or predicted[k]]),
        "balanced_accuracy": _mean([by_class[k]["recall"] for k in range(len(names)) if support[k]]),
        "mcc": _mcc(sum(hits), support, predicted),
        "per_class": dict(zip(names, by_class, strict=True)),
    }


def most_frequent(train_counts: Counts) -> int:
    """Name the class most frequent in training; of equals, the first."""
    return train_counts.index(max(train_counts))


def majority_baseline(support: Counts, most: int, classes: Sequence[str] | None = None) -> dict[str, Any]:
    """Score always answering class `most`, the most frequent in training. support: of the split judged."""
    total = sum(support)
    always = Margins(
        hits=[n if k == most else 0 for k, n in enumerate(support)],
        support=support,
        predicted=[total if k == most else 0 for k in range(len(support))],
    )
    return {"class": classes[most] if classes else str(most), **scores(always, classes)}


def class_prior_baseline(support: Counts, train_counts: Counts) -> dict[str, Any]:
    """Score answering at random, each class as often as in training: of the expected confusion matrix.

    Of n_i samples of class i, n_i q_j are expected to be called j, with q the frequencies in training.
    """
    total, num_samples = sum(train_counts), sum(support)
    q = [_ratio(count, total) for count in train_counts]
    pairs = list(zip(support, q, strict=True))
    return {
        "accuracy": _ratio(math.fsum(n * p for n, p in pairs), num_samples),
        "macro_f1": _mean([2 * n * p / (n + num_samples * p) for n, p in pairs if n or p]),
        "balanced_accuracy": _mean([p for n, p in pairs if n]),
        "mcc": 0.0,
    }


def constant_loss(
    support: Counts,
    train_counts: Counts,
    loss: Mapping[str, Any],
    class_weights: Sequence[float] | None = None,
) -> float | None:
    """Compute the loss of the constant probabilities that are best in training: what a model must undercut.

    loss: the section of a job's config; class_weights: as resolved, null = all 1. Null where there is no such
    number: a loss that is no cross-entropy, no weight at all, or a class that training does not have.
    """
    if loss["name"] != "cross_entropy":
        return None
    weights = class_weights or [1.0] * len(support)
    smoothing = float(loss.get("label_smoothing", 0.0))

    def mass(counts: Counts) -> list[float]:
        """What each class's -log probability counts for, label smoothing included."""
        even = smoothing / len(counts) * sum(counts)
        return [w * ((1 - smoothing) * n + even) for w, n in zip(weights, counts, strict=True)]

    fitted, asked = mass(train_counts), mass(support)
    total = math.fsum(w * n for w, n in zip(weights, support, strict=True))
    if not total or any(a and not f for f, a in zip(fitted, asked, strict=True)):
        return None
    best = math.fsum(fitted)
    return math.fsum(-a * math.log(f / best) for f, a in zip(fitted, asked, strict=True) if a) / total


def _mcc(num_hits: int, support: Counts, predicted: Counts) -> float:
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
