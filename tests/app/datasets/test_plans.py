"""Plans are kept by content: the second dry run and the worker read no rows to plan again."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest

from app.datasets import plans as module
from app.datasets.plans import planned
from app.datasets.preflight import preflight
from app.datasets.schema import open_dataset
from app.datasets.split import SplitPlan, plan_split
from app.jobs.config import JobRequest
from tests.app.datasets.make import START_S, table, write


def request(data: dict[str, Any] | None = None, **sections: Any) -> JobRequest:
    return JobRequest.model_validate({"data": {"path": "set", "window": 5, **(data or {})}, **sections})


def plan(root: Path, data: dict[str, Any] | None = None, weights: list[float] | None = None) -> SplitPlan:
    section = request(data).data
    return planned(open_dataset(root, section), section, root / ".plans", class_weights=weights)


def fill(root: Path, num_rows: int = 400, holes: int = 20) -> None:
    """Two groups with holes, in two files."""
    times = np.arange(num_rows) + np.arange(num_rows) // holes * 100
    for part, at in enumerate(np.array_split(np.arange(num_rows), 2)):
        rows = table(
            len(at),
            timestamp=pa.array((START_S + times[at]) * 10**9, pa.timestamp("ns")),
            symbol=["ab"[row % 2] for row in at],
        )
        write(root, f"set/{part}.parquet", rows)


GROUPED = {"group": "symbol", "max_gap_s": 10.0, "stride": 2}
TESTED = {"split": {"train": 0.5, "val": 0.25, "test": 0.25}}


@pytest.mark.parametrize("data", [{}, GROUPED, TESTED, {**GROUPED, **TESTED}], ids=str)
def test_a_kept_plan_is_the_plan(tmp_path: Path, data: dict[str, Any]) -> None:
    fill(tmp_path)
    first = plan(tmp_path, data)
    with patch.object(module, "plan_split", side_effect=AssertionError("planned again")):
        assert plan(tmp_path, data) == first
    section = request(data).data
    assert plan_split(open_dataset(tmp_path, section), section) == first


def test_what_cannot_change_a_plan_does_not_plan_again_and_all_else_does(tmp_path: Path) -> None:
    fill(tmp_path)
    plan(tmp_path)
    free = {"path": "set/*.parquet", "normalize": "standard", "shuffle": "block", "features": ["a"]}
    changes: list[dict[str, Any]] = [
        {"window": 6},
        {"stride": 2},
        {"max_gap_s": 3.0},
        {"horizon_s": 1.0},
        {"embargo_s": 1.0},
        {"group": "symbol"},
        {"classes": ["w", "x", "y", "z"]},
        TESTED,
    ]
    with patch.object(module, "plan_split", side_effect=AssertionError("planned again")):
        plan(tmp_path, free)
        for change in changes:
            with pytest.raises(AssertionError, match="planned again"):
                plan(tmp_path, change)
        with pytest.raises(AssertionError, match="planned again"):
            plan(tmp_path, weights=[1.0, 1.0, 1.0, 1.0])
        fill(tmp_path, 402)
        with pytest.raises(AssertionError, match="planned again"):
            plan(tmp_path)


def test_a_second_dry_run_reads_footers_and_first_rows_only(tmp_path: Path) -> None:
    fill(tmp_path)
    plans = tmp_path / ".plans"
    first = preflight(tmp_path, request(), limit_s=60, plans=plans)
    with patch("app.datasets.scan.read_columns", side_effect=AssertionError("rows were read")):
        assert preflight(tmp_path, request(priority=3), limit_s=60, plans=plans) == first


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "of another version"])
def test_a_damaged_file_costs_a_pass(tmp_path: Path, damage: str) -> None:
    fill(tmp_path)
    first = plan(tmp_path, GROUPED)
    (path,) = (tmp_path / ".plans").iterdir()
    content = path.read_bytes()
    flipped = content[:400] + bytes([content[400] ^ 255]) + content[401:]
    with path.open("wb") as file:
        if damage == "of another version":
            np.savez(file, plan=np.frombuffer(b'{"train": null}', np.uint8))
        else:
            file.write({"cut": content[:-30], "flipped": flipped, "empty": b"", "text": b"plan"}[damage])
    assert plan(tmp_path, GROUPED) == first
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_costs_a_pass(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / ".plans").write_text("in the way")
    assert plan(tmp_path).train.windows


def test_only_the_last_used_are_kept(tmp_path: Path) -> None:
    fill(tmp_path)
    with patch.object(module, "MAX_FILES", 2):
        for window in (3, 4, 3, 5):
            plan(tmp_path, {"window": window})
    with patch.object(module, "plan_split", side_effect=AssertionError("planned again")):
        plan(tmp_path, {"window": 3})
        plan(tmp_path, {"window": 5})
        with pytest.raises(AssertionError, match="planned again"):
            plan(tmp_path, {"window": 4})


def test_the_size_of_a_plan_grows_with_holes_not_with_rows(tmp_path: Path) -> None:
    def num_bytes(num_rows: int, holes: int) -> int:
        root = tmp_path / f"{num_rows}-{holes}"
        fill(root, num_rows, holes)
        plan(root, {"max_gap_s": 10.0})
        (path,) = (root / ".plans").iterdir()
        return path.stat().st_size

    assert num_bytes(40_000, 10**9) < num_bytes(400, 10**9) + 100
    assert num_bytes(4000, 20) > num_bytes(4000, 400)
