"""The leak audit of a dataset under a job's data section: footers first, then one pass over all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from app.datasets.audit.collect import Collected, collect
from app.datasets.audit.duplicates import find_duplicates
from app.datasets.audit.findings import Finding
from app.datasets.audit.future import Future
from app.datasets.audit.labels import find_labels
from app.datasets.audit.normaliser import find_scaling
from app.datasets.audit.times import find_early_ends, find_misplaced_files
from app.datasets.places import Root
from app.datasets.schema import STREAM_BUDGET, Dataset, open_dataset
from app.datasets.split import SplitPlan, plan_split
from app.jobs.config import DataConfig


def audit_dataset(
    root: Root, data: DataConfig, *, deadline: float | None = None, budget_bytes: int = STREAM_BUDGET
) -> dict[str, Any]:
    """Look for leaks in the dataset and split that `data` describes; `findings` is empty when none is found.

    Every row is read once; memory does not grow with rows. What needs neighbouring rows is judged on at most
    65,536 of them, in stretches (`rows_judged`). Past `deadline`, a time.monotonic(), the rows read so far
    are judged and `is_partial` is true.
    Raises DataError when no job could train on the data, PreflightTimeout when not even a plan was had.
    """
    dataset = open_dataset(root, data, deadline=deadline, budget_bytes=budget_bytes)
    plan = plan_split(dataset, data, deadline=deadline)
    found = collect(dataset, data, plan, deadline)
    findings = list(_findings(dataset, data, plan, found))
    return {
        "path": data.path,
        "fingerprint": dataset.fingerprint,
        "rows": dataset.rows,
        "rows_read": found.num_rows,
        "rows_judged": len(found.sample),
        "is_partial": found.is_partial,
        "findings": [finding.view() for finding in findings],
        "warnings": [{"code": code, "message": text} for code, text in (*dataset.warnings, *plan.warnings)],
    }


def _findings(dataset: Dataset, data: DataConfig, plan: SplitPlan, found: Collected) -> Iterator[Finding]:
    yield from find_early_ends(found)
    yield from find_misplaced_files(found, plan, data.path)
    yield from find_duplicates(found, plan)
    yield from find_scaling(found, dataset.features)
    if len(found.sample):
        told: set[int] = set()
        yield from find_labels(found.sample, dataset.features, plan.classes, told)
        yield from Future(found.sample).find(dataset, plan, told)
