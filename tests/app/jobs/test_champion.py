"""Which checkpoint stands in the data root: the best of the comparable, or the one that is pinned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.jobs.champion import crown, promote
from app.jobs.files import Paths, sidecar


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path)


def save(paths: Paths, job_id: str, val_loss: float) -> Path:
    """Give a job a best whose content is its id."""
    best = paths.best(job_id)
    best.parent.mkdir(parents=True, exist_ok=True)
    best.write_text(job_id)
    about = {"sha256": job_id, "comparison_key": "k", "metrics": {"val_loss": val_loss}}
    sidecar(best).write_text(json.dumps(about))
    return best


def reigning(paths: Paths) -> tuple[str, dict[str, Any]]:
    about: dict[str, Any] = json.loads(sidecar(paths.champion()).read_text())
    assert about["sha256"] == paths.champion().read_text(), "weights and description belong together"
    return about["sha256"], about


def test_a_pinned_champion_stays_however_good_the_next(paths: Paths) -> None:
    save(paths, "good", 1.0)
    assert crown(paths, "good")
    assert promote(paths, save(paths, "chosen", 2.0))
    save(paths, "better", 0.1)
    assert not crown(paths, "better")
    assert not crown(paths, "chosen"), "its own end takes the pin away from nobody"
    assert (reigning(paths)[0], reigning(paths)[1]["pinned"]) == ("chosen", True)


def test_another_promotion_replaces_a_pinned_one(paths: Paths) -> None:
    promote(paths, save(paths, "first", 1.0))
    promote(paths, save(paths, "second", 2.0))
    assert reigning(paths)[0] == "second"


def test_the_jobs_own_description_knows_no_pin(paths: Paths) -> None:
    best = save(paths, "chosen", 1.0)
    promote(paths, best)
    assert "pinned" not in json.loads(sidecar(best).read_text())


def test_without_the_pinned_files_the_best_reigns_again(paths: Paths) -> None:
    promote(paths, save(paths, "chosen", 1.0))
    paths.champion().unlink()
    save(paths, "next", 2.0)
    assert crown(paths, "next")
    assert reigning(paths)[0] == "next"


def test_half_a_coronation_is_completed(paths: Paths) -> None:
    save(paths, "old", 2.0)
    crown(paths, "old")
    best = save(paths, "new", 1.0)
    # Killed between the two links.
    sidecar(paths.champion()).unlink()
    sidecar(paths.champion()).write_bytes(sidecar(best).read_bytes())
    assert crown(paths, "new")
    assert reigning(paths)[0] == "new"


def test_a_checkpoint_without_description_is_not_promoted(paths: Paths) -> None:
    best = save(paths, "bare", 1.0)
    sidecar(best).unlink()
    assert not promote(paths, best)
    assert not paths.champion().exists()
