"""Contents of a later part that the model has seen in an earlier one.

Windows: two windows of T rows that agree bit for bit are evidence when chance cannot make them. A row that
differs from the row before it equals another such row with chance q, measured on evenly drawn rows; so
windows with c changes agree by chance about n_a x n_b x q^c times. Only those with
c >= log(n_a x n_b x 1000) / log(1 / q) count, which leaves under one false window in a thousand data sets:
halted markets (c = 0) and coarse features (q large) give none, continuous features need one to four changes.

Rows: contents that occur at most twice in each part. They are compared with a placebo inside training, its
last fifth against the rest: coarse features repeat there as much, copies of validation rows do not. Found
when the share is 3 times the placebo's and 6 standard errors above it, and at least 5 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray

from app.datasets.audit.collect import Collected, rows_time
from app.datasets.audit.findings import Finding
from app.datasets.audit.hashes import Words
from app.datasets.split import SplitPlan

CHANCE = 1e-3
MAX_COPIES = 2
MIN_ROWS = 5
_REMEDY = "Remove the repeated period, or build the dataset from each source once and in time order."


def find_duplicates(found: Collected, plan: SplitPlan) -> Iterator[Finding]:
    """Report windows, else rows, that stand in two parts."""
    windows = list(_find_windows(found, plan))
    yield from windows or _find_rows(found, plan)


def _find_windows(found: Collected, plan: SplitPlan) -> Iterator[Finding]:
    names, (parts, times, changes) = found.windows.take()
    chance = _chance_of_equal(found.places)
    counts = np.bincount(parts, minlength=len(plan.parts)) / found.windows.share
    for early, late in _part_pairs(plan):
        if not counts[early] or not counts[late]:
            continue
        needed = max(1, ceil(log(counts[early] * counts[late] / CHANCE) / -log(chance)))
        usable = changes >= needed
        seen = usable & (parts == early)
        asked = usable & (parts == late)
        known = np.isin(names[asked], names[seen])
        if not known.any():
            continue
        share = float(known.mean())
        first = int(np.flatnonzero(known)[0])
        name, at = names[asked][first], int(times[asked][first])
        original = int(times[seen][np.flatnonzero(names[seen] == name)[0]])
        about = "" if found.windows.share == 1 else "about "
        number = round(float(known.sum()) / found.windows.share)
        where, source = list(plan.parts)[late], list(plan.parts)[early]
        yield Finding(
            "duplicate_windows",
            "leak",
            f"{about}{number:,} {where} windows ({share:.2%}) equal a {source} window bit for bit, the first"
            f" the one ending at {rows_time(at)}, which equals the one ending at {rows_time(original)}.",
            _REMEDY,
            {"windows": number, "share": share, "at": rows_time(at), "equals": rows_time(original)},
        )


def _find_rows(found: Collected, plan: SplitPlan) -> Iterator[Finding]:
    names, (parts, times) = found.rows.take()
    train = parts == 0
    if not train.any():
        return
    middle = np.quantile(times[train], 0.8)
    placebo, num_placebo = _shared(names[train & (times <= middle)], names[train & (times > middle)])
    rate = placebo.mean() if num_placebo else 0.0
    for early, late in _part_pairs(plan):
        asked = parts == late
        known, num = _shared(names[parts == early], names[asked])
        if int(known.sum()) < MIN_ROWS:
            continue
        share = float(known.mean())
        if share <= 3 * rate + 6 * sqrt(max(rate, 1 / num) / num):
            continue
        at = int(times[asked][np.flatnonzero(known)[0]])
        about = "" if found.rows.share == 1 else "about "
        number = round(float(known.sum()) / found.rows.share)
        where, source = list(plan.parts)[late], list(plan.parts)[early]
        yield Finding(
            "duplicate_rows",
            "leak",
            f"{about}{number:,} {where} rows ({share:.2%}) have the features of a {source} row, the first at"
            f" {rows_time(at)}; inside training the same comparison gives {rate:.2%}.",
            _REMEDY,
            {"rows": number, "share": share, "placebo": float(rate), "at": rows_time(at)},
        )


def _part_pairs(plan: SplitPlan) -> Iterator[tuple[int, int]]:
    numbers = range(len(plan.parts))
    yield from pairwise(numbers)
    if len(numbers) > 2:
        yield 0, 2


def _chance_of_equal(places: Words) -> float:
    """The chance that two rows agree, from all pairs of drawn rows; never below what they can resolve."""
    num = len(places)
    if num < 2:
        return 0.5
    counts = np.unique(places, return_counts=True)[1].astype(np.float64)
    pairs = num * (num - 1) / 2
    equal = float((counts * (counts - 1) / 2).sum())
    return min(0.999999, (equal + 3) / pairs)


def _shared(early: Words, late: Words) -> tuple[NDArray[np.bool_], int]:
    """For each late row, whether its content stands in `early`, counting rare contents only."""
    rare_early, rare_late = _rare(early), _rare(late)
    return np.isin(late, np.intersect1d(rare_early, rare_late)), len(late)


def _rare(names: Words) -> Words:
    found, counts = np.unique(names, return_counts=True)
    return found[counts <= MAX_COPIES]
