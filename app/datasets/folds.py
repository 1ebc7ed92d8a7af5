"""Walk-forward folds: train on the past, validate on what follows, move on."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Literal

from app.datasets.cuts import Survey, cut_at
from app.datasets.errors import DataError, TooManyFolds
from app.datasets.scan import Scan
from app.datasets.schema import Dataset
from app.datasets.split import SplitPlan, assemble_plan, plan_faults
from app.jobs.config import DataConfig

Mode = Literal["expanding", "rolling"]

MAX_FOLDS = 100


def walk_forward(
    dataset: Dataset,
    data: DataConfig,
    *,
    folds: int,
    mode: Mode = "expanding",
    train: float = 0.5,
    class_weights: Sequence[float] | None = None,
    deadline: float | None = None,
) -> tuple[SplitPlan, ...]:
    """Plan `folds` splits whose validation parts follow one another and cover all rows after the first cut.

    With N rows of all groups in time order, validation of fold k (from 0) begins at row
    floor((train + (1 - train) k / folds) N) and ends where the next begins, the last with the data; each cut
    is moved past equal times. Training is every row before it (expanding), or the last rows before it, as
    many as the first fold has (rolling). Window, stride, gap, embargo and purge are those of a split: a
    training window's label ends before validation begins, a validation window's before the next fold's does,
    and no window begins before its part. `data.split` has no say. In each plan test is null and `cuts_ns` are
    the first row times of validation and of what follows it.

    train: share of the rows before the first validation part, above 0 and below 1.
    Raises what plan_split raises, the message naming the fold, and TooManyFolds.
    Source: Lopez de Prado, Advances in Financial Machine Learning (2018), ch. 7 and 12.
    """
    if not (1 <= folds <= MAX_FOLDS and 0 < train < 1):
        raise ValueError(f"folds must be 1..{MAX_FOLDS} and train between 0 and 1, not {folds} and {train}")
    survey = Survey(dataset, deadline)
    starts = _validation_starts(dataset.rows, folds, train)
    cuts = [cut_at(survey, row, dataset.rows) for row in starts]
    if None in cuts or len(set(cuts)) < folds:
        raise TooManyFolds(
            f"{dataset.rows:,} rows cannot be cut into {folds} folds: a validation part would have no row.",
            "Ask for fewer folds, or a smaller train share.",
        )
    plans = []
    for fold, (row, val_from) in enumerate(zip(starts, cuts, strict=True)):
        val_to = cuts[fold + 1] if fold + 1 < folds else None
        skipped = row - starts[0] if mode == "rolling" else 0
        train_from = cut_at(survey, skipped, dataset.rows) if skipped else None
        bounds = [cut for cut in (train_from, val_from, val_to) if cut is not None]
        first = int(train_from is not None)
        scan = Scan(dataset, data, bounds, num_exempt=first + 1)
        scan.run(deadline)
        tallies = scan.parts[first : first + 2]
        plan = assemble_plan(dataset, data, scan, tallies, (val_from, val_to), class_weights)
        faults = plan_faults(plan, class_weights)
        if faults:
            raise DataError.of([_of_fold(fault, fold, folds) for fault in faults])
        plans.append(plan)
    return tuple(plans)


def _validation_starts(num_rows: int, folds: int, train: float) -> list[int]:
    """First rows of the validation parts, from decimals as written."""
    share = Fraction(repr(train))
    return [floor((share + (1 - share) * Fraction(fold, folds)) * num_rows) for fold in range(folds)]


def _of_fold(fault: DataError, fold: int, folds: int) -> DataError:
    return type(fault)(f"fold {fold + 1} of {folds}: {fault.message}", fault.hint, pointer=fault.pointer)
