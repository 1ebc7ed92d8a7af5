"""Publishing checkpoints: a job's best under its fixed name; what is read and kept of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from app.failpoints import failpoint
from app.jobs.files import Paths, sidecar
from app.jobs.placing import link, read_json, sync, write_json
from app.jobs.queue import Checkpoint
from worker.engine.events import BestFile
from worker.report.model_card import JSON_NAME, MARKDOWN_NAME

REPORTS = (JSON_NAME, MARKDOWN_NAME)


def write_sidecar(folder: Path, best: BestFile) -> None:
    """Write the description of a best checkpoint beside it, for whoever publishes it."""
    write_json(sidecar(folder / best.name), best.sidecar)


def publish_best(paths: Paths, job_id: str, best_file: str) -> None:
    """Make a committed best the job's `saimp_best.pth`. best_file: below the job's folder, as in its row."""
    source, target = paths.job(job_id) / best_file, paths.best(job_id)
    if target.exists() and not target.samefile(source):
        for export in paths.exports(job_id):  # of the best before
            export.unlink(missing_ok=True)
    failpoint("publish.before_link")
    link(source, target)
    failpoint("publish.between_links")
    link(sidecar(source), sidecar(target))  # last: it says which best is published
    failpoint("publish.after_link")
    sync(target.parent)


def is_published(paths: Paths, job_id: str, sha256: str) -> bool:
    """Tell whether the job's `saimp_best.pth` is the best its row names."""
    about = read_json(sidecar(paths.best(job_id)))
    return paths.best(job_id).exists() and about is not None and about.get("sha256") == sha256


def publish_reports(paths: Paths, job_id: str, attempt: int) -> None:
    """Make the report an attempt has written the job's."""
    for name in REPORTS:
        source = paths.attempt(job_id, attempt) / name
        if source.exists():
            link(source, paths.job(job_id) / name)


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


def is_tidy(paths: Paths, job_id: str, checkpoints: Collection[str]) -> bool:
    """Tell whether only bests and these (`<job>/<name>`) lie in the folders of the attempts at a job."""
    return all(
        file.name.startswith("best-") or f"{job_id}/attempts/{folder.name}/{file.name}" in checkpoints
        for folder in _attempts(paths, job_id)
        for file in _files(folder)
    )


def sweep(paths: Paths, job_id: str, kept: Collection[str]) -> None:
    """Delete what earlier attempts left and no row names: drafts, resume checkpoints, bests of neither."""
    job = paths.job(job_id)
    kept_paths = {job / name for name in kept} | {
        sidecar(job / name) for name in kept if name.endswith(".pth")
    }
    for folder in _attempts(paths, job_id):
        needed = {path for path in kept_paths if path.parent == folder}
        # A resume checkpoint needs the best beside it, under whatever attempt's name it is known.
        names = {path.name for path in kept_paths} if needed else set()
        for file in _files(folder):
            if file not in kept_paths and file.name not in names:
                file.unlink()


def _attempts(paths: Paths, job_id: str) -> list[Path]:
    """List the folders of the attempts at a job. What else lies beside them is not ours."""
    return [path for path in (paths.job(job_id) / "attempts").glob("*") if path.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.is_dir()]
