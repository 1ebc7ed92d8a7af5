"""Publishing checkpoints: a job's best under its fixed name, and the champion. Link, then rename."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from app.failpoints import failpoint
from app.jobs.files import Paths, sidecar
from app.jobs.queue import Checkpoint
from worker.engine.events import BestFile
from worker.report.model_card import JSON_NAME, MARKDOWN_NAME

REPORTS = (JSON_NAME, MARKDOWN_NAME)


def write_sidecar(folder: Path, best: BestFile) -> None:
    """Write the description of a best checkpoint beside it, for whoever publishes it."""
    _write_json(sidecar(folder / best.name), best.sidecar)


def publish_best(paths: Paths, job_id: str, best_file: str) -> None:
    """Make a committed best the job's `saimp_best.pth`. best_file: below the job's folder, as in its row."""
    source, target = paths.job(job_id) / best_file, paths.best(job_id)
    failpoint("publish.before_link")
    _link(sidecar(source), sidecar(target))
    failpoint("publish.between_links")
    _link(source, target)
    failpoint("publish.after_link")
    _sync(target.parent)


def is_published(paths: Paths, job_id: str, sha256: str) -> bool:
    """Tell whether the job's `saimp_best.pth` is the best its row names."""
    about = _read_json(sidecar(paths.best(job_id)))
    return paths.best(job_id).exists() and about is not None and about.get("sha256") == sha256


def publish_reports(paths: Paths, job_id: str, attempt: int) -> None:
    """Make the report an attempt has written the job's."""
    for name in REPORTS:
        source = paths.attempt(job_id, attempt) / name
        if source.exists():
            _link(source, paths.job(job_id) / name)


def unreadable(paths: Paths, at: Checkpoint) -> str | None:
    """Say why a resume checkpoint cannot be gone on from; null when it and its best are what was written."""
    folder = paths.job(at.job_id)
    path = folder / at.name
    files = [(path, at.sha256)]
    if at.best_file is not None and at.best_sha256 is not None:
        files.append((path.with_name(PurePosixPath(at.best_file).name), at.best_sha256))
    for file, sha256 in files:
        try:
            with file.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                    return f"{file.name} is not what was written"
        except OSError as error:
            return f"{file.name} cannot be read: {error.strerror}"
    return None


def sweep(paths: Paths, job_id: str, kept: Collection[str]) -> None:
    """Delete what earlier attempts left and no row names: drafts, resume checkpoints, bests of neither."""
    job = paths.job(job_id)
    kept_paths = {job / name for name in kept} | {
        sidecar(job / name) for name in kept if name.endswith(".pth")
    }
    for folder in (job / "attempts").glob("*"):
        needed = {path for path in kept_paths if path.parent == folder}
        # A resume checkpoint needs the best beside it, under whatever attempt's name it is known.
        names = {path.name for path in kept_paths} if needed else set()
        for file in folder.iterdir():
            if file not in kept_paths and file.name not in names:
                file.unlink()


def crown(paths: Paths, job_id: str) -> bool:
    """Let a job that has ended with a best become the champion, if it is one. Returns whether it did.

    It replaces the champion if there is none, if the two are not comparable (newest data wins), or if its
    validation loss is lower.
    """
    ours = _standing(paths.best(job_id))
    if ours is None:
        return False
    champion = _standing(paths.champion())
    if champion is not None and champion[0] == ours[0] and champion[1] <= ours[1]:
        return False
    _link(sidecar(paths.best(job_id)), sidecar(paths.champion()))
    failpoint("crown.between_links")
    _link(paths.best(job_id), paths.champion())
    _sync(paths.data_root)
    return True


def _standing(weights: Path) -> tuple[str, float] | None:
    """Read a checkpoint's comparison key and validation loss; null when it is not one of ours."""
    about = _read_json(sidecar(weights))
    if about is None or not weights.exists():
        return None
    try:
        return str(about["comparison_key"]), float(about["metrics"]["val_loss"])
    except (KeyError, TypeError, ValueError):
        return None


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
    failpoint("sidecar.before_rename")
    os.replace(draft, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
