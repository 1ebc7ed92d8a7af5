"""The bad-input matrix, rows 30 to 47: each dataset is refused by name in a dry run and in inspect.

In a job they are refused too: tests/worker/test_bad_files.py. What only features show (rows 32, 34 and 41) is
refused by inspect and by the job: a dry run reads no features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets import inspect as inspecting
from app.datasets import preflight as checking
from app.datasets.errors import DataError
from app.datasets.inspect import inspect_dataset
from app.datasets.preflight import preflight
from app.jobs.config import JobRequest
from tests.app.datasets.bad import ONLY_FEATURES, REFUSED, SMALL_BUDGET, WARNED
from tests.app.datasets.make import START_S, table, write

MIB = 2**20


def dry_run(root: Path, data: dict[str, Any], budget_bytes: int = 512 * MIB) -> dict[str, str]:
    request = JobRequest.model_validate({"data": data})
    found = preflight(root, request, limit_s=60, budget_bytes=budget_bytes).errors
    return {problem.code: f"{problem.message} | {problem.hint}" for problem in found}


def inspected(root: Path, data: dict[str, Any], budget_bytes: int = 512 * MIB) -> dict[str, str]:
    request = JobRequest.model_validate({"data": data})
    try:
        found = inspect_dataset(root, request.data, budget_bytes=budget_bytes)
    except DataError as error:
        return {problem.code: f"{problem.message} | {problem.hint}" for problem in error.problems}
    return {problem["code"]: f"{problem['message']} | {problem['hint']}" for problem in found["errors"]}


def warned(root: Path, data: dict[str, Any]) -> dict[str, str]:
    request = JobRequest.model_validate({"data": data})
    return {one["code"]: one["message"] for one in inspect_dataset(root, request.data)["warnings"]}


@pytest.mark.parametrize(("make", "data", "code", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("look", [dry_run, inspected], ids=["dry run", "inspect"])
def test_a_bad_dataset_is_refused_by_name_with_its_place_and_a_remedy(
    tmp_path: Path,
    look: Callable[..., dict[str, str]],
    make: Callable[[Path], None],
    data: dict[str, Any],
    code: str,
    words: list[str],
) -> None:
    make(tmp_path)
    found = look(tmp_path, {"path": "set", "window": 5, **data}, budget_bytes=SMALL_BUDGET)
    assert list(found) == [code]
    for word in words:
        assert word in found[code]
    assert not found[code].endswith("| None")
    assert str(tmp_path) not in found[code]
    assert "\x1b" not in found[code]


@pytest.mark.parametrize(("make", "data", "code", "words"), ONLY_FEATURES.values(), ids=ONLY_FEATURES)
def test_what_only_features_show_is_found_by_inspect(
    tmp_path: Path, make: Callable[[Path], None], data: dict[str, Any], code: str, words: list[str]
) -> None:
    make(tmp_path)
    section = {"path": "set", "window": 5, **data}
    found = inspected(tmp_path, section)
    assert list(found) == [code]
    for word in words:
        assert word in found[code]
    assert dry_run(tmp_path, section) == {}


@pytest.mark.parametrize(("make", "code", "words"), WARNED.values(), ids=WARNED)
def test_what_would_hurt_is_a_warning(
    tmp_path: Path, make: Callable[[Path], None], code: str, words: list[str]
) -> None:
    make(tmp_path)
    found = warned(tmp_path, {"path": "set", "window": 5})
    assert code in found
    for word in words:
        assert word in found[code]


@pytest.mark.parametrize("place", [checking, inspecting], ids=["dry run", "inspect"])
def test_47_a_file_that_changes_while_it_is_read_is_named(
    tmp_path: Path, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "set/a.parquet", table(200))
    opening = place.open_dataset

    def then_it_changes(*args: Any, **options: Any) -> Any:
        dataset = opening(*args, **options)
        write(tmp_path, "set/a.parquet", table(190))
        return dataset

    monkeypatch.setattr(place, "open_dataset", then_it_changes)
    found = (dry_run if place is checking else inspected)(tmp_path, {"path": "set", "window": 5})
    assert list(found) == ["data_changed"]
    assert path.name in found["data_changed"]


def test_the_order_of_columns_and_of_names_is_free(tmp_path: Path) -> None:
    write(tmp_path, "set/b.parquet", table(200))
    rows = table(200, start_s=START_S + 200).select(["b", "a", "label", "timestamp"])
    write(tmp_path, "set/a.parquet", rows)
    assert dry_run(tmp_path, {"path": "set", "window": 5}) == {}


def test_a_giant_row_group_of_small_pages_is_fine(tmp_path: Path) -> None:
    rows = table(50_000, features=pa.array([bytes(2048)] * 50_000, pa.binary(2048)))
    path = write(
        tmp_path,
        "a.parquet",
        rows,
        metadata={"dtype": "float32", "shape": [4, 128]},
        use_dictionary=False,
        compression="none",
    )
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size > 97 * MIB
    data = {"path": "a.parquet", "features": "features"}
    assert dry_run(tmp_path, data, budget_bytes=32 * MIB) == {}
