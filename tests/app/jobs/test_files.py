"""Paths and names."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from app.jobs.files import Paths, sidecar


def test_two_jobs_claimed_in_one_second_get_two_logs(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "data", tmp_path / "logs")
    at = datetime(2026, 11, 23, 21, 5, 9, tzinfo=UTC)
    assert [paths.create_log(at) for _ in range(3)] == [
        "train_run_20261123_210509",
        "train_run_20261123_210509_2",
        "train_run_20261123_210509_3",
    ]
    assert paths.log("train_run_20261123_210509").exists()


def test_the_sidecar_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    assert sidecar(tmp_path / "saimp_best.pth") == tmp_path / "saimp_best.json"
