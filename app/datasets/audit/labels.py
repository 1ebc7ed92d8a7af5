"""Features that are the label, hold it, or hold a label that nobody knows yet.

One rule: a feature is cut into at most 64 bins of equal training rows (or its distinct values); a bin says
"class k" when it holds a larger share of training's class k than of the rest. On later rows such a rule has
balanced accuracy 1/2 by chance, with a standard error of at most 0.11 at 10 rows of each kind (and 0.04 at
100), so 0.95 is out of reach of chance, and of what one honest feature tells of the future: it is the answer.
Source of the one-rule classifier: Holte (1993), Very simple classification rules perform well.

Copies: a feature of at most K values that tells the label of k rows later or earlier on 99.9 % of rows, and
on 99 % of those rows whose label differs from the row's own, which autocorrelated labels cannot fake.

Shapes: M rows of the sample, E elements of a row, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.datasets.audit.findings import Finding
from app.datasets.audit.sample import Floats, Ints, Sample
from app.datasets.features import Features
from app.datasets.values import element_name

BINS = 64
MIN_ROWS = 50
MIN_KIND = 10
ENCODES = 0.95
COPIES = 0.999
MAX_LAG = 16
MAX_CLASSES_JUDGED = 8

_LEAVE_OUT = "Leave the column out of data.features, or rebuild it from what is known at the row's time."


def find_labels(
    sample: Sample, features: Features, classes: tuple[str, ...], told: set[int]
) -> Iterator[Finding]:
    """Report features that tell the label of their row, or of another row whose label is not known yet.

    told: gets the elements that were found, and those that hold a label known at their row: where labels
    persist, such a one tells the label honestly.
    """
    for element in range(sample.values_ME.shape[1]):
        finding, is_copy = _find_copy(sample, features, element)
        if is_copy:
            told.add(element)
        if finding is not None:
            yield finding
    yield from _find_encoding(sample, features, classes, told)


def _find_copy(sample: Sample, features: Features, element: int) -> tuple[Finding | None, bool]:
    """The leak, if it is one, and whether the feature holds a label at all."""
    values_M = sample.values_ME[:, element]
    num_kinds = len(np.unique(sample.labels_M))
    # More values than classes are no copy: each may be unique, and tells whatever there is. A few rows show.
    if len(np.unique(values_M[:1024])) > num_kinds or values_M.min() == values_M.max():
        return None, False
    distinct, codes_M = np.unique(values_M, return_inverse=True)
    if len(distinct) > num_kinds:
        return None, False
    name = element_name(features, element)
    if _is_function(codes_M, sample.labels_M, None):
        finding = Finding(
            "feature_is_label",
            "leak",
            f"Feature {name} is the label under another name: each of its {len(distinct)} values stands for"
            f" one class in {len(sample):,} rows.",
            _LEAVE_OUT,
            {"feature": name, "values": len(distinct)},
        )
        return finding, True
    for lag in (sign * size for size in range(1, MAX_LAG + 1) for sign in (1, -1)):
        rows = sample.pairs(lag)
        other = sample.labels_M[rows + lag]
        if not _is_function(codes_M[rows], other, sample.labels_M[rows]):
            continue
        if lag > 0:
            finding = Finding(
                "feature_is_future_label",
                "leak",
                f"Feature {name} is the label of {lag} row(s) later, in {len(rows):,} rows.",
                _LEAVE_OUT,
                {"feature": name, "lag": lag},
            )
            return finding, True
        unknown = sample.ends_M[rows + lag] > sample.times_M[rows]
        if unknown.mean() > 0.01:
            finding = Finding(
                "feature_is_unknown_label",
                "leak",
                f"Feature {name} is the label of {-lag} row(s) earlier, which in {unknown.mean():.1%} of rows"
                " is known only after the row that holds it.",
                "Use labels as features only from their label_end on.",
                {"feature": name, "lag": lag, "unknown": float(unknown.mean())},
            )
            return finding, True
        return None, True
    return None, False


def _is_function(codes_M: Ints, labels_M: Ints, own_M: Ints | None) -> bool:
    """Whether one follows from the other, both ways; own: labels that must not be the reason."""
    if len(codes_M) < MIN_ROWS or codes_M.min() == codes_M.max():
        return False
    num_labels = int(labels_M.max()) + 1
    table = np.zeros((int(codes_M.max()) + 1, num_labels), np.int64)
    np.add.at(table, (codes_M, labels_M), 1)
    meant = table.argmax(axis=1)
    kinds = np.unique(meant[table.sum(axis=1) > 0])
    right_M = meant[codes_M] == labels_M
    if len(kinds) < 2 or right_M.mean() < COPIES:
        return False
    if own_M is None:
        return True
    telling = own_M != labels_M
    return bool(telling.sum() >= 2 * MIN_KIND and right_M[telling].mean() >= 0.99)


def _find_encoding(
    sample: Sample, features: Features, classes: tuple[str, ...], told: set[int]
) -> Iterator[Finding]:
    train, later = sample.parts_M == 0, sample.parts_M > 0
    if train.sum() < MIN_ROWS or later.sum() < MIN_ROWS:
        return
    labels_train, labels_later = sample.labels_M[train], sample.labels_M[later]
    judged = _judged(labels_train, labels_later)
    found: list[tuple[float, int, int]] = []
    for element in range(sample.values_ME.shape[1]):
        if element in told or not judged:
            continue
        values_M = sample.values_ME[:, element]
        score, label = _one_rule(values_M[train], values_M[later], labels_train, labels_later, judged)
        if score >= ENCODES:
            found.append((score, element, label))
            told.add(element)
    for score, element, label in sorted(found, reverse=True)[:5]:
        name = element_name(features, element)
        others = f" ({len(found)} features do)" if len(found) > 1 else ""
        yield Finding(
            "feature_encodes_label",
            "leak",
            f"Feature {name} alone tells class {label} ({classes[label]}) with balanced accuracy {score:.3f}"
            f" on {int(later.sum()):,} later rows by a rule fitted on {int(train.sum()):,} training rows;"
            f" chance is 0.5{others}.",
            _LEAVE_OUT,
            {"feature": name, "class": label, "score": score},
        )


def _judged(train: Ints, later: Ints) -> list[int]:
    """The most frequent classes with enough rows of both kinds on both sides."""
    counts = np.bincount(train)
    return [
        int(label)
        for label in np.argsort(-counts, kind="stable")[:MAX_CLASSES_JUDGED]
        if min((side == label).sum() for side in (train, later)) >= MIN_KIND
        and min((side != label).sum() for side in (train, later)) >= MIN_KIND
    ]


def _one_rule(
    train: Floats, later: Floats, labels_train: Ints, labels_later: Ints, judged: list[int]
) -> tuple[float, int]:
    """The best balanced accuracy of one class against the rest, and the class."""
    edges = _edges(train)
    if not edges.size:
        return 0.0, 0
    bins_train = np.searchsorted(edges, train, side="right")
    bins_later = np.searchsorted(edges, later, side="right")
    best = (0.0, 0)
    for label in judged:
        is_train, is_later = labels_train == label, labels_later == label
        ours = np.bincount(bins_train[is_train], minlength=len(edges) + 1) / is_train.sum()
        theirs = np.bincount(bins_train[~is_train], minlength=len(edges) + 1) / (~is_train).sum()
        said = (ours > theirs)[bins_later]
        score = float((said[is_later].mean() + (~said[~is_later]).mean()) / 2)
        best = max(best, (score, label))
    return best


def _edges(values: Floats) -> NDArray[np.float64]:
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        return np.asarray((distinct[1:] + distinct[:-1]) / 2)
    return np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
