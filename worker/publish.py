"""Publishing checkpoints: a job's best under its fixed name, and the champion. Link, then rename."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.jobs.files import Paths, sidecar
from worker.engine.events import BestFile

KEEP_BESTS = 2  # a reader may still stream the one before


def publish_best(paths: Paths, job_id: str, attempt: int, best: BestFile) -> None:
    """Make a committed best the job's `saimp_best.pth`, and sweep those it supersedes."""
    source = paths.attempt(job_id, attempt) / best.name
    target = paths.best(job_id)
    _write_json(sidecar(target), best.sidecar)
    _link(source, target)
    _sync(target.parent)
    bests = sorted(p for p in source.parent.iterdir() if re.fullmatch(r"best-e\d+-[0-9a-f]+\.pth", p.name))
    for old in bests[:-KEEP_BESTS]:
        old.unlink()


def crown(paths: Paths, job_id: str) -> bool:
    """Let a job that has ended with a best become the champion, if it is one. Returns whether it did.

    It replaces the champion if there is none, if the two are not comparable (newest data wins), or if its
    validation loss is lower.
    """
    best = paths.best(job_id)
    if not best.exists():
        return False
    ours = _read_json(sidecar(best))
    champion = _read_json(sidecar(paths.champion()))
    if ours is None or (
        champion is not None
        and paths.champion().exists()
        and ours["comparison_key"] == champion["comparison_key"]
        and ours["metrics"]["val_loss"] >= champion["metrics"]["val_loss"]
    ):
        return False
    _write_json(sidecar(paths.champion()), ours)
    _link(best, paths.champion())
    _sync(paths.data_root)
    return True


def _link(source: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.tmp")
    draft.unlink(missing_ok=True)
    os.link(source, draft)
    os.replace(draft, target)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    return None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
