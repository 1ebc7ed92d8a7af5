"""Scores against definitions applied to the samples one by one, and against numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.jobs.scores import (
    Margins,
    class_prior_baseline,
    constant_loss,
    majority_baseline,
    most_frequent,
    scores,
)

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


@given(matrices)
def test_the_margins_of_a_matrix_score_as_it_does(confusion: list[list[int]]) -> None:
    assert scores(Margins.of(confusion)) == scores(confusion)


@given(matrices)
def test_the_majority_baseline_is_the_score_of_that_matrix(confusion: list[list[int]]) -> None:
    support = [sum(row) for row in confusion]
    always = [[n, *[0] * (len(support) - 1)] for n in support]
    assert majority_baseline(support, 0) == {"class": "0", **scores(always)}


def test_a_class_that_never_occurs_does_not_lower_the_means() -> None:
    found = scores([[5, 0, 0], [0, 5, 0], [0, 0, 0]])
    assert found["macro_f1"] == found["balanced_accuracy"] == 1.0


def test_no_samples_score_zero() -> None:
    found = scores([[0, 0], [0, 0]])
    assert [found[name] for name in ("accuracy", "macro_f1", "balanced_accuracy", "mcc")] == [0, 0, 0, 0]


def test_the_majority_baseline_answers_what_training_has_most_of() -> None:
    train, support = [300, 100], [40, 80]
    found = majority_baseline(support, most_frequent(train), ["down", "up"])
    assert (found["class"], found["accuracy"]) == ("down", pytest.approx(40 / 120))
    assert found["macro_f1"] == pytest.approx((2 * 40 / (120 + 40) + 0) / 2)
    assert (found["balanced_accuracy"], found["mcc"]) == (0.5, 0)


def test_the_class_prior_baseline_worked_out_by_hand() -> None:
    found = class_prior_baseline([80, 40], [300, 100])
    # (80 x 0.75 + 40 x 0.25) / 120; F1 = 2 n q / (n + N q).
    assert found["accuracy"] == pytest.approx(70 / 120)
    assert found["macro_f1"] == pytest.approx((2 * 80 * 0.75 / 170 + 2 * 40 * 0.25 / 70) / 2)
    assert (found["balanced_accuracy"], found["mcc"]) == (0.5, 0)


def test_a_class_that_is_nowhere_counts_in_no_baseline() -> None:
    assert class_prior_baseline([10, 10, 0], [50, 50, 0])["macro_f1"] == pytest.approx(0.5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, [1.0, 10.0, 10.0, 20.0]])
def test_no_other_constant_has_a_lower_loss_in_training(
    weights: list[float] | None, label_smoothing: float
) -> None:
    train = [850, 70, 60, 20]
    loss = {"name": "cross_entropy", "label_smoothing": label_smoothing}
    weighted = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        label_smoothing=label_smoothing,
    )
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(train))
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def value() -> torch.Tensor:
        fit.zero_grad()
        found: torch.Tensor = weighted(logits.expand(len(labels), 4), labels)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    fit.step(value)  # type: ignore[no-untyped-call]
    assert constant_loss(train, train, loss, weights) == pytest.approx(float(value().detach()), rel=1e-6)
    # On another split: the loss of those same constants there.
    other = [10, 20, 30, 40]
    there = torch.repeat_interleave(torch.arange(4), torch.tensor(other))
    expected = float(weighted(logits.detach().expand(len(there), 4), there))
    assert constant_loss(other, train, loss, weights) == pytest.approx(expected, rel=1e-5)


def test_no_constant_has_a_loss_where_there_is_no_such_number() -> None:
    plain = {"name": "cross_entropy", "label_smoothing": 0.0}
    assert constant_loss([1, 1], [5, 0], plain) is None  # -log 0
    assert constant_loss([1, 1], [5, 5], plain, [0.0, 0.0]) is None
    assert constant_loss([1, 1], [5, 5], {"name": "focal", "gamma": 2.0}) is None
    assert constant_loss([1, 0], [5, 0], plain) == 0


def test_classes_of_one_name_do_not_hide_each_other() -> None:
    found = scores([[3, 1], [2, 4]], ["up", "up"])
    assert found["macro_f1"] == scores([[3, 1], [2, 4]])["macro_f1"]
