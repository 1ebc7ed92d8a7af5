"""What is in a dataset, for a person to judge: files, times, holes, classes, features, split, warnings."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from app.datasets.errors import DataError, PreflightTimeout
from app.datasets.feature_values import FeatureValues
from app.datasets.places import Root
from app.datasets.preflight import plan_view
from app.datasets.scan import Scan
from app.datasets.schema import STREAM_BUDGET, Dataset, open_dataset
from app.datasets.split import plan_split
from app.datasets.times import Times, rfc3339
from app.errors import Problem
from app.jobs.config import DataConfig

LARGEST_HOLES = 5


def inspect_dataset(
    root: Root,
    data: DataConfig,
    *,
    deadline: float | None = None,
    budget_bytes: int = STREAM_BUDGET,
    has_features: bool = True,
) -> dict[str, Any]:
    """Describe the dataset that `data.path` names, with the split that `data` gives it.

    has_features: read the features too, streamed; else `feature_values` is null.
    Raises DataError when it cannot be opened. What its rows have wrong is listed under `errors`; `splits` is
    null then. Past `deadline`, a time.monotonic(), what was read so far is described, `is_partial` is true
    and the warning `inspect_partial` says so; PreflightTimeout is raised when not even footers were read.
    """
    dataset = open_dataset(root, data, deadline=deadline, budget_bytes=budget_bytes)
    scan, profile, values = Scan(dataset, data, ()), _Profile(), FeatureValues(dataset.features)
    warnings, num_rows, is_partial = list(dataset.warnings), 0, False
    faults: list[Problem] = []
    plan = plan_view(None)
    classes = list(dataset.classes) if dataset.classes else None
    try:
        for lane, rows in scan.read(deadline, has_features=has_features):
            num_rows += len(rows.times_N)
            profile.add(lane, rows.times_N)
            if rows.features_NE is not None:
                values.add(rows)
    except DataError as error:
        faults += error.problems
    except PreflightTimeout:
        is_partial = True
    try:
        split = plan_split(dataset, data, deadline=deadline)
        plan, classes = plan_view(split), list(split.classes)
        warnings += split.warnings
    except DataError as error:
        faults += [problem for problem in error.problems if problem not in faults]
    except PreflightTimeout:
        is_partial = True
    if has_features:
        warnings += values.warnings(data)
        faults += values.faults(data)
    if is_partial:
        partial = f"Time ran out after {num_rows:,} of {dataset.rows:,} rows; only these are described."
        warnings.append(("inspect_partial", partial))
    return {
        "path": data.path,
        **_described(dataset),
        **profile.view(is_grouped=dataset.group is not None),
        "groups": [str(group) for group in scan.groups] if dataset.group else None,
        "classes": classes,
        "label_counts": {str(label): rows for label, rows in sorted(scan.label_counts.items())},
        "feature_values": values.view() if has_features else None,
        **plan,
        "rows_read": num_rows,
        "is_partial": is_partial,
        "warnings": [{"code": code, "message": message} for code, message in warnings],
        "errors": [
            {"pointer": p.pointer, "code": p.code, "message": p.message, "hint": p.hint} for p in faults
        ],
    }


def _described(dataset: Dataset) -> dict[str, Any]:
    """What footers tell."""
    features = dataset.features
    return {
        "fingerprint": dataset.fingerprint,
        "files": [
            {"name": file.name, "rows": file.rows, "row_groups": len(file.row_groups)}
            for file in dataset.files
        ],
        "rows": dataset.rows,
        "timestamp": {
            "column": dataset.timestamp,
            "unit": dataset.timestamp_unit,
            "unit_detected": dataset.is_unit_detected,
        },
        "features": {
            "layout": features.layout,
            "columns": list(features.columns),
            "dtype": features.dtype,
            "shape": list(features.shape),
        },
        "label": dataset.label,
        "label_end": dataset.label_end,
        "horizon_s": dataset.horizon_s,
        "metadata": None if dataset.metadata is None else dataset.metadata.model_dump(mode="json"),
    }


@dataclass(slots=True)
class _Profile:
    """Range, holes and repeats of the times, judged inside each group."""

    first_ns: int | None = None
    last_ns: int | None = None
    num_duplicates: int = 0
    holes: list[tuple[int, int, int]] = field(default_factory=list)  # a heap of (length, -nth, start), in ns
    _last: dict[int, int] = field(default_factory=dict)
    _nth: count[int] = field(default_factory=count)

    def add(self, lane: int, times_N: Times) -> None:
        before = self._last.get(lane)
        joined = times_N if before is None else np.concatenate([np.array([before]), times_N])
        steps = np.diff(joined)
        self.num_duplicates += int(np.count_nonzero(steps == 0))
        for place in np.argsort(-steps, kind="stable")[:LARGEST_HOLES]:
            if steps[place] > 0:
                hole = (int(steps[place]), -next(self._nth), int(joined[place]))
                heapq.heappush(self.holes, hole)
                if len(self.holes) > LARGEST_HOLES:
                    heapq.heappop(self.holes)
        low, high = int(times_N.min()), int(times_N.max())
        self.first_ns = low if self.first_ns is None else min(self.first_ns, low)
        self.last_ns = high if self.last_ns is None else max(self.last_ns, high)
        self._last[lane] = int(times_N[-1])

    def view(self, *, is_grouped: bool) -> dict[str, Any]:
        return {
            "start": None if self.first_ns is None else rfc3339(self.first_ns),
            "end": None if self.last_ns is None else rfc3339(self.last_ns),
            "largest_gaps": [
                {"start": rfc3339(start), "end": rfc3339(start + length), "seconds": length / 1e9}
                for length, _, start in sorted(self.holes, reverse=True)
            ],
            "duplicate_timestamps": self.num_duplicates,
            "judged_inside": "group" if is_grouped else "dataset",
        }
