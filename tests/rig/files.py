"""Rows held against each other and against files, once nothing runs any more. No torch here."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import sqlalchemy as sa
from PIL import Image

from app.db import Database
from app.jobs.champion import behind_file
from app.jobs.files import Paths
from app.jobs.queue import Queue, Row
from app.jobs.states import Status
from app.jobs.tables import event, job

PUBLISHED = frozenset({"saimp_best.pth", "saimp_best.json", "report.json", "report.md"})


def assert_sound(queue: Queue, root: Path) -> None:
    """Hold rows against each other and against the files, once nothing runs any more."""
    _assert_sound_rows(queue.database)
    named = set()
    for row in queue.page(limit=10_000)[0]:
        _assert_sound_files(queue, root, row)
        named.add(row.log_name)
    for path in (root / "logs").glob("*"):
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()
        # A log is made before the row that names it: one that was never named is empty.
        assert path.stem in named or path.stat().st_size == 0, f"{path.name} is no job's"
    drafts = [str(path) for path in root.rglob(".*.tmp")]
    assert not drafts, drafts


def assert_sound_champion(database: Database, root: Path) -> None:
    """Hold `saimp_best.pth` against the rows, where one data root is everybody's."""
    with database.reading() as connection:
        row = behind_file(connection, Paths(root / "data", root / "logs"))
    if row is not None:
        best = root / "data" / "saimp_best.pth"
        assert _sha256(best) == row.best_sha256, "an old champion"
        assert row.best_sha256 in best.with_suffix(".json").read_text(), "an old champion's sidecar"


def _assert_sound_rows(database: Database) -> None:
    with database.reading() as connection:
        rows = {row.id: row for row in connection.execute(sa.select(job))}
        events = connection.execute(sa.select(event).order_by(event.c.job_id, event.c.seq)).all()
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    told: dict[str, list[Row]] = {job_id: [] for job_id in rows}
    for one in events:
        told[one.job_id].append(one)
    for job_id, history in told.items():
        _assert_sound_history(rows[job_id], history)


def _assert_sound_history(row: Row, history: list[Row]) -> None:
    """Each attempt ends before the next begins, and nothing follows the end."""
    kinds = [one.kind for one in history]
    assert kinds[0] == "submitted", (row.id, kinds)
    running = 0
    for one in history:
        if one.kind == "claimed":
            assert running == 0, f"{row.id}: attempt {one.attempt} began while {running} ran: {kinds}"
            running = one.attempt
        elif one.kind in ("finished", "paused", "released", "requeued"):
            running = 0
    claims = [one.attempt for one in history if one.kind == "claimed"]
    assert claims == list(range(1, row.attempt + 1)), (row.id, claims, row.attempt)
    assert kinds.count("finished") == (1 if row.finished_at is not None else 0), (row.id, kinds)
    if row.finished_at is not None:
        assert kinds[-1] == "finished" or set(kinds[kinds.index("finished") + 1 :]) <= {
            "edited",
            "promoted",
            "promotion_ended",
        }, kinds


def _assert_sound_files(queue: Queue, root: Path, row: Row) -> None:
    folder = root / "data" / "jobs" / row.id
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    kept = queue.kept_files(row.id)
    sidecars = {name.removesuffix(".pth") + ".json" for name in kept if name.endswith(".pth")}
    if row.status in (Status.QUEUED, Status.RUNNING):
        return  # it has files to come, and to lose
    # Another attempt may have linked the best it goes with: the same file under the same name.
    names = {PurePosixPath(name).name for name in kept | sidecars}
    strays = {name for name in files - PUBLISHED if PurePosixPath(name).name not in names}
    assert not strays, f"{row.id} ({row.status}) has files that no row names: {sorted(strays)}"
    for saved in queue.checkpoints(row.id):
        assert _sha256(folder / saved.name) == saved.sha256, saved.name
    if row.best_file is not None:
        assert _sha256(folder / row.best_file) == row.best_sha256, row.best_file
        assert _sha256(folder / "saimp_best.pth") == row.best_sha256, f"{row.id}: an old best is published"
        assert row.best_sha256 in (folder / "saimp_best.json").read_text(), f"{row.id}: an old sidecar"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
