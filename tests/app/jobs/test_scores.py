"""Scores against definitions applied to the samples one by one, and against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.scores import scores

matrices = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 6), min_size=k, max_size=k), min_size=k, max_size=k)
)


def samples_of(confusion: list[list[int]]) -> list[tuple[int, int]]:
    """List (label, prediction) of every sample."""
    classes = range(len(confusion))
    return [pair for pair in product(classes, classes) for _ in range(confusion[pair[0]][pair[1]])]


def test_a_matrix_worked_out_by_hand() -> None:
    found = scores([[3, 1], [2, 4]], ["down", "up"])
    assert found["accuracy"] == 0.7
    assert found["per_class"]["down"] == {"precision": 0.6, "recall": 0.75, "f1": 6 / 9, "support": 4}
    assert found["per_class"]["up"] == {"precision": 0.8, "recall": 4 / 6, "f1": 8 / 11, "support": 6}
    assert found["macro_f1"] == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 4 / 6) / 2)
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN))
    assert found["mcc"] == pytest.approx((4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5))
    assert found["majority_accuracy"] == 0.6


@given(matrices)
def test_every_score_agrees_with_its_definition_on_the_samples(confusion: list[list[int]]) -> None:
    samples = samples_of(confusion)
    found = scores(confusion)
    if samples:
        assert found["accuracy"] == pytest.approx(sum(y == p for y, p in samples) / len(samples))
    for k in range(len(confusion)):
        true_positives = sum(y == p == k for y, p in samples)
        labels = sum(y == k for y, _ in samples)
        predictions = sum(p == k for _, p in samples)
        mine = found["per_class"][str(k)]
        assert mine["support"] == labels
        assert mine["recall"] == pytest.approx(true_positives / labels if labels else 0)
        assert mine["precision"] == pytest.approx(true_positives / predictions if predictions else 0)
        if true_positives:
            harmonic = 2 / (1 / mine["precision"] + 1 / mine["recall"])
            assert mine["f1"] == pytest.approx(harmonic)
        else:
            assert mine["f1"] == 0


@given(matrices)
def test_mcc_is_the_correlation_of_one_hot_labels_and_predictions(confusion: list[list[int]]) -> None:
    samples, classes = samples_of(confusion), range(len(confusion))
    n = len(samples)

    def covariance(left: int, right: int) -> float:
        total = 0.0
        for k in classes:
            xs, ys = [s[left] == k for s in samples], [s[right] == k for s in samples]
            total += sum(x * y for x, y in zip(xs, ys, strict=True)) - sum(xs) * sum(ys) / n
        return total

    varies = n and len({y for y, _ in samples}) > 1 and len({p for _, p in samples}) > 1
    expected = covariance(0, 1) / math.sqrt(covariance(0, 0) * covariance(1, 1)) if varies else 0.0
    assert scores(confusion)["mcc"] == pytest.approx(expected, abs=1e-9)


def test_a_class_that_never_occurs_does_not_lower_the_means() -> None:
    found = scores([[5, 0, 0], [0, 5, 0], [0, 0, 0]])
    assert found["macro_f1"] == found["balanced_accuracy"] == 1.0


def test_no_samples_score_zero() -> None:
    found = scores([[0, 0], [0, 0]])
    assert [found[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "mcc")] == [0, 0, 0, 0]
