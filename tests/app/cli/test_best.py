"""`saimp predict` and `saimp export`: found without a service, done by a process of the worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from app.cli.best import find_best
from app.cli.export import Format, export
from app.cli.failures import NOT_FOUND
from app.cli.predict import predict
from app.jobs.files import Paths, sidecar
from app.settings import load
from tests.worker.best import save_best
from tests.worker.test_predict import make_rows, make_table
from worker.publish import publish_best

MLP = {"name": "mlp", "d_model": 6, "hidden": 7}
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def finished(root: Path) -> Path:
    """Leave a job's best below a data root."""
    folder = root / "jobs" / JOB
    folder.mkdir(parents=True)
    return save_best(folder, MLP)[0]


def test_a_best_is_found_by_id_and_by_file(tmp_path: Path) -> None:
    best = finished(tmp_path)
    settings = load(data_root=tmp_path)
    assert find_best(JOB, settings) == best
    assert find_best(str(best), settings) == best
    with pytest.raises(typer.Exit) as ending:
        find_best(str(tmp_path / "gone.pth"), settings)
    assert ending.value.exit_code == NOT_FOUND


def test_predict_writes_the_classes_of_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path)
    (tmp_path / "new").mkdir()
    pq.write_table(make_table(make_rows(9), range(9)), tmp_path / "new" / "d.parquet")
    out = tmp_path / "preds.parquet"
    with pytest.raises(typer.Exit) as ending:
        predict(JOB, str(tmp_path / "new"), out=out, data_root=tmp_path)
    assert ending.value.exit_code == 0
    assert json.loads(capfd.readouterr().out)["windows"] == 6
    assert pq.read_table(out).num_rows == 6


def test_an_export_is_one_of_the_jobs_files_until_there_is_a_better_best(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    best = finished(tmp_path)
    with pytest.raises(typer.Exit) as ending:
        export(JOB, Format.safetensors, data_root=tmp_path)
    assert ending.value.exit_code == 0
    target = best.with_suffix(".safetensors")
    assert capfd.readouterr().out.strip() == str(target)
    paths = Paths(tmp_path, tmp_path / "logs")
    assert [path for path in paths.exports(JOB) if path.exists()] == [target]
    attempt = paths.attempt(JOB, 1)
    attempt.mkdir(parents=True)
    os.link(best, attempt / "same.pth")
    os.link(sidecar(best), attempt / "same.json")
    publish_best(paths, JOB, "attempts/1/same.pth")
    assert target.exists()
    (attempt / "better.pth").write_bytes(b"better")
    (attempt / "better.json").write_text("{}")
    publish_best(paths, JOB, "attempts/1/better.pth")
    assert best.read_bytes() == b"better"
    assert not target.exists()


def test_export_fails_as_the_worker_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    best = finished(tmp_path)
    best.write_bytes(b"other")
    with pytest.raises(typer.Exit) as ending:
        export(JOB, Format.torch_export, out=tmp_path / "m.pt2", data_root=tmp_path)
    assert ending.value.exit_code == 1
    assert "its sidecar says" in capfd.readouterr().err
    assert not (tmp_path / "m.pt2").exists()
