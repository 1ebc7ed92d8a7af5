"""Preflight: every problem at once, warnings, a time limit, one plan for one content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from app.datasets.preflight import Preflight, plan_document, plan_view, preflight
from app.jobs.config import JobRequest
from tests.app.datasets.make import START_S, table, write


def request(data: dict[str, Any] | None = None, **sections: Any) -> JobRequest:
    return JobRequest.model_validate({"data": {"path": "a.parquet", "window": 5, **(data or {})}, **sections})


def checked(root: Path, data: dict[str, Any] | None = None, **sections: Any) -> Preflight:
    return preflight(root, request(data, **sections), limit_s=20)


def test_a_sound_dataset_has_a_plan_and_its_warnings(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([0] * 100)))
    found = checked(tmp_path)
    assert found.errors == ()
    assert found.dataset is not None
    assert found.plan is not None
    assert [code for code, _ in found.warnings] == ["no_horizon", "single_class"]


def test_the_view_is_that_of_the_contract(tmp_path: Path) -> None:
    times = np.arange(100) * 1_500_000_000 + START_S * 10**9
    write(tmp_path, "a.parquet", table(100, timestamp=pa.array(times, pa.timestamp("ns"))))
    found = checked(tmp_path, {"horizon_s": 3.0})
    assert plan_view(found.plan) == {
        "splits": {
            "train": {
                "rows": 80,
                "windows": 74,
                "start": "2023-11-14T22:13:20Z",
                "end": "2023-11-14T22:15:15.5Z",
                "class_counts": [19, 19, 18, 18],
                "dropped": {"purged": 2, "embargoed": 0, "gap": 0, "non_finite": None},
            },
            "val": {
                "rows": 20,
                "windows": 16,
                "start": "2023-11-14T22:15:20Z",
                "end": "2023-11-14T22:15:48.5Z",
                "class_counts": [4, 4, 4, 4],
                "dropped": {"purged": 0, "embargoed": 4, "gap": 0, "non_finite": None},
            },
            "test": None,
        },
        "dropped": {"purged": 2, "embargoed": 4, "gap": 0, "non_finite": None},
    }


def test_a_plan_says_how_far_labels_look_and_what_they_are_worth(tmp_path: Path) -> None:
    ends = START_S + np.arange(100) + np.where(np.arange(100) % 4, 10, 30)
    write(tmp_path, "a.parquet", table(100, label_end=pa.array(ends, pa.timestamp("s"))))
    write(tmp_path, "b.parquet", table(100))

    def labels(path: str, **data: Any) -> dict[str, Any]:
        request = JobRequest.model_validate({"data": {"path": path, "window": 5, **data}})
        plan = preflight(tmp_path, request, limit_s=20).plan
        found: dict[str, Any] = plan_document(request, plan, {})["labels"]
        return found

    found = labels("a.parquet")
    assert (found["ahead_median_s"], found["ahead_max_s"]) == (10.0, 30.0)
    assert 4 < found["independent"]["train"] < 10
    assert found["independent"]["test"] is None
    by_horizon = labels("b.parquet", horizon_s=10.0)
    assert by_horizon["ahead_max_s"] is None
    # 66 labels of 10 s over 75 s.
    assert by_horizon["independent"]["train"] == pytest.approx(7.5, abs=1)
    nothing = labels("b.parquet")
    assert nothing == {
        "ahead_median_s": None,
        "ahead_max_s": None,
        "independent": {"train": None, "val": None, "test": None},
    }


def test_problems_are_returned_with_pointers(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    found = checked(tmp_path, {"timestamp": "t", "label": "y"})
    assert [(e.pointer, e.code) for e in found.errors] == [
        ("/data/timestamp", "schema_mismatch"),
        ("/data/label", "schema_mismatch"),
    ]
    assert (found.dataset, found.plan) == (None, None)
    assert [e.pointer for e in checked(tmp_path, {"path": "../x"}).errors] == ["/data/path"]


def test_an_infeasible_split_keeps_the_dataset_and_its_warnings(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(20))
    found = checked(tmp_path)
    assert [(e.pointer, e.code) for e in found.errors] == [("/data/split", "empty_split")]
    assert found.dataset is not None
    assert [code for code, _ in found.warnings] == ["no_horizon"]


def test_weights_of_the_loss_are_checked_against_the_classes(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    loss = {"name": "cross_entropy", "class_weights": [1.0, 2.0]}
    assert [e.pointer for e in checked(tmp_path, loss=loss).errors] == ["/loss/class_weights"]


def test_past_the_limit_the_job_is_let_through_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    found = preflight(tmp_path, request(), limit_s=-1)
    assert (found.plan, found.errors) == (None, ())
    assert [code for code, _ in found.warnings] == ["preflight_partial"]
    assert plan_view(found.plan) == {"splits": None, "dropped": None}


def test_what_was_found_wrong_before_the_limit_is_still_told(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100))
    assert [e.code for e in preflight(tmp_path, request({"path": "b"}), limit_s=-1).errors] == ["no_files"]


def test_checking_data_loads_neither_torch_nor_the_server() -> None:
    names = "torch", "fastapi", "starlette", "sqlalchemy", "worker"
    code = f"import sys, app.datasets.inspect; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.strip() == "[]"
