"""`saimp data inspect`: the description, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
import typer
from typer.testing import CliRunner

from app.cli.data_inspect import inspect
from app.datasets.errors import DataError, PreflightTimeout
from app.datasets.inspect import inspect_dataset
from app.jobs.config import DataConfig
from tests.app.datasets.make import SECOND, START_S, table, write

METADATA = {"version": 1, "classes": ["down", "up"], "horizon_s": 2, "build": {"bar_trades": 200}}

command = typer.Typer()
command.command()(inspect)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    steps = np.ones(100, dtype=np.int64)
    steps[[0, 30, 60, 61]] = 0, 50, 7, 0
    times = (START_S + np.cumsum(steps)) * SECOND
    root = tmp_path / "data"
    for name, part in (("b", slice(0, 60)), ("a", slice(60, 100))):
        rows = table(
            len(times[part]),
            timestamp=pa.array(times[part], pa.timestamp("ns")),
            label=pa.array(np.arange(len(times[part])) % 2),
        )
        write(root, f"set/{name}.parquet", rows, metadata=METADATA, row_group_size=9)
    return root


def test_a_dataset_is_described(root: Path) -> None:
    found = inspect_dataset(root, DataConfig(path="set", window=5))
    assert [file["name"] for file in found["files"]] == ["set/b.parquet", "set/a.parquet"]
    assert found["rows"] == 100
    assert (found["start"], found["end"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:15:53Z")
    assert [gap["seconds"] for gap in found["largest_gaps"]][:3] == [50.0, 7.0, 1.0]
    assert found["largest_gaps"][0]["start"] == "2023-11-14T22:13:49Z"
    assert found["duplicate_timestamps"] == 1
    assert found["features"] == {"layout": "columns", "columns": ["a", "b"], "dtype": "float32", "shape": [2]}
    assert found["label_counts"] == {"0": 50, "1": 50}
    assert found["classes"] == ["down", "up"]
    assert found["splits"]["train"]["dropped"]["purged"] == 2
    assert found["metadata"]["build"] == {"bar_trades": 200}
    assert found["errors"] == []
    json.dumps(found, allow_nan=False)


def test_holes_and_repeats_are_those_inside_a_group(tmp_path: Path) -> None:
    for name, shift in (("x", 0), ("y", 1)):
        rows = table(100, start_s=START_S + shift, step_s=2, group=pa.array([name] * 100))
        write(tmp_path, f"set/{name}.parquet", rows)
    found = inspect_dataset(tmp_path, DataConfig(path="set", group="group", window=5))
    assert found["groups"] == ["x", "y"]
    assert {gap["seconds"] for gap in found["largest_gaps"]} == {2.0}
    assert found["duplicate_timestamps"] == 0


def test_features_are_described_by_their_values(root: Path) -> None:
    values = inspect_dataset(root, DataConfig(path="set", window=5))["feature_values"]
    assert (values["non_finite"], values["constant"], values["num_elements"]) == (0, 0, 2)
    first, second = values["elements"]
    assert (first["name"], first["min"], first["max"]) == ("a", 0.0, 59.0)
    assert first["mean"] == pytest.approx((59 * 60 / 2 + 39 * 40 / 2) / 100)
    assert second["mean"] == -first["mean"]


def test_features_need_not_be_read(root: Path) -> None:
    with patch("app.datasets.scan.read_features", side_effect=AssertionError("features were read")):
        found = inspect_dataset(root, DataConfig(path="set", window=5), has_features=False)
    assert found["feature_values"] is None
    assert found["label_counts"] == {"0": 50, "1": 50}


def test_when_time_runs_out_what_was_read_is_described(root: Path) -> None:
    with patch("app.datasets.inspect.plan_split", side_effect=PreflightTimeout):
        found = inspect_dataset(root, DataConfig(path="set", window=5))
    assert found["is_partial"]
    assert found["splits"] is None
    assert (found["rows_read"], found["errors"]) == (100, [])
    assert "inspect_partial" in [warning["code"] for warning in found["warnings"]]


def test_faults_of_features_and_of_labels_come_together(tmp_path: Path) -> None:
    features = pa.array([None if row == 9 else 1.0 for row in range(100)], pa.float32())
    write(tmp_path, "a.parquet", table(100, a=features, label=pa.array([0, 9000] * 50)))
    found = inspect_dataset(tmp_path, DataConfig(path="a.parquet"))
    assert {error["code"] for error in found["errors"]} == {"schema_mismatch", "label_out_of_range"}


def test_what_rows_have_wrong_is_listed_beside_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(100, label=pa.array([0, 9000] * 50)))
    found = inspect_dataset(tmp_path, DataConfig(path="a.parquet"))
    assert [error["code"] for error in found["errors"]] == ["label_out_of_range"]
    assert found["splits"] is None
    assert found["rows"] == 100


def test_what_cannot_be_opened_is_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        inspect_dataset(tmp_path, DataConfig(path="a.parquet"))


def test_the_command_writes_text_for_a_pipe(root: Path) -> None:
    done = CliRunner().invoke(command, ["set", "--data-root", str(root), "--window", "5"])
    assert done.exit_code == 0, done.output
    for words in ("100 in 2 file(s)", "50.000 s from 2023-11-14T22:13:49Z", "down 50 (50.0%)", "float32 [2]"):
        assert words in done.output
    assert "\x1b" not in done.output
    assert "┃" not in done.output


def test_the_command_writes_json(root: Path) -> None:
    done = CliRunner().invoke(command, ["set", "--data-root", str(root), "--window", "5", "-o", "json"])
    assert json.loads(done.stdout) == inspect_dataset(root, DataConfig(path="set", window=5))


def test_a_path_as_the_shell_completes_it_is_understood(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    done = CliRunner().invoke(command, ["data/set", "--window", "5"])
    assert done.exit_code == 0, done.output


def test_a_dataset_no_job_could_use_fails_the_command(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(20))
    for path, code in (("a.parquet", "empty_split"), ("../x", "path_outside_data_root"), ("b", "no_files")):
        done = CliRunner().invoke(command, [path, "--data-root", str(tmp_path)])
        assert done.exit_code == 1
        assert code in done.output
