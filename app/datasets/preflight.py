"""Everything that can be known of a job's data before it is queued, in a bounded time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.datasets.errors import DataError, PreflightTimeout, SourceUnavailable
from app.datasets.places import Root
from app.datasets.plans import planned
from app.datasets.schema import STREAM_BUDGET, Dataset, open_dataset
from app.datasets.split import DropReason, PartName, PartPlan, SplitPlan
from app.datasets.times import rfc3339
from app.errors import Problem
from app.jobs.config import JobRequest

_PARTS: tuple[PartName, ...] = ("train", "val", "test")
_REASONS: tuple[DropReason, ...] = ("purged", "embargoed", "gap")


@dataclass(frozen=True, slots=True)
class Preflight:
    """What the data checks found. plan: null when there are errors, or when time ran out.

    errors: every problem, pointing into the request; warnings: (code, sentence).
    """

    dataset: Dataset | None
    plan: SplitPlan | None
    warnings: tuple[tuple[str, str], ...]
    errors: tuple[Problem, ...]


def preflight(
    root: Root,
    request: JobRequest,
    *,
    limit_s: float,
    budget_bytes: int = STREAM_BUDGET,
    plans: Path | None = None,
) -> Preflight:
    """Open the dataset and plan its split, within `limit_s` seconds; problems are returned, not raised.

    budget_bytes: memory of the stream; rows that cannot be decoded in it are a problem.
    plans: folder of plans that are known; null = plan anew.
    Past the limit the result has no plan and the warning `preflight_partial`.
    Raises SourceUnavailable: that says nothing of the request.
    """
    deadline = time.monotonic() + limit_s
    dataset: Dataset | None = None
    try:
        dataset = open_dataset(root, request.data, deadline=deadline, budget_bytes=budget_bytes)
        # "auto" gives every class a weight, so there is nothing to refuse.
        chosen = request.loss.class_weights
        weights = chosen if isinstance(chosen, list) else None
        plan = planned(dataset, request.data, plans, class_weights=weights, deadline=deadline)
    except SourceUnavailable:
        raise
    except DataError as error:
        return Preflight(dataset, None, dataset.warnings if dataset else (), error.problems)
    except PreflightTimeout:
        partial = (
            "preflight_partial",
            f"The data checks took longer than {limit_s:g} s and stopped; the job checks the rest first.",
        )
        return Preflight(dataset, None, (*(dataset.warnings if dataset else ()), partial), ())
    return Preflight(dataset, plan, (*dataset.warnings, *plan.warnings), ())


def plan_view(plan: SplitPlan | None) -> dict[str, Any]:
    """Render a plan's `splits` and `dropped` as the API shows them; both null without a plan.

    Times are RFC 3339 in UTC; non_finite is null until the features have been read.
    """
    if plan is None:
        return {"splits": None, "dropped": None}
    parts = plan.parts
    dropped = {reason: sum(part.dropped[reason] for part in parts.values()) for reason in _REASONS}
    non_finite = [part.dropped.get("non_finite") for part in parts.values()]
    return {
        "splits": {name: _part_view(parts[name]) if name in parts else None for name in _PARTS},
        "dropped": {
            **dropped,
            "non_finite": None if None in non_finite else sum(count or 0 for count in non_finite),
        },
    }


def plan_document(
    request: JobRequest,
    plan: SplitPlan | None,
    model: Mapping[str, int | None],
    *,
    seconds_per_epoch: float | None = None,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """Render what a job would do, as it is stored and shown: classes, model, splits, training.

    model: {"parameters", "flops_per_sample"}; whatever is not known is null.
    """
    effective_batch = request.training.samples_per_step
    return {
        "classes": list(plan.classes) if plan else None,
        "model": dict(model),
        **plan_view(plan),
        "labels": _labels_view(plan) if plan else None,
        "training": {
            "effective_batch": effective_batch,
            "steps_per_epoch": -(-plan.train.windows // effective_batch) if plan else None,
            "seconds_per_epoch": seconds_per_epoch,
            "memory_bytes": memory_bytes,
        },
    }


def _labels_view(plan: SplitPlan) -> dict[str, Any]:
    """How far labels look ahead by label_end, and how many independent ones each part's are worth."""
    median_ns, longest_ns = plan.ahead_ns or (None, None)
    parts = plan.parts
    return {
        "ahead_median_s": None if median_ns is None else median_ns / 1e9,
        "ahead_max_s": None if longest_ns is None else longest_ns / 1e9,
        "independent": {name: parts[name].independent if name in parts else None for name in _PARTS},
    }


def _part_view(part: PartPlan) -> dict[str, Any]:
    return {
        "rows": part.rows,
        "windows": part.windows,
        "start": None if part.start_ns is None else rfc3339(part.start_ns),
        "end": None if part.end_ns is None else rfc3339(part.end_ns),
        "class_counts": list(part.class_counts),
        "dropped": {reason: part.dropped.get(reason) for reason in (*_REASONS, "non_finite")},
    }
