"""The champions: of each comparison key the best job that has ended, or the one a user has promoted.

The rows alone say which it is. `saimp_best.pth` in the data root follows them, inside the transaction that
changes them: so it is right before anybody can read that a job has ended. A crash in between is put right at
the next start or ending.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.failpoints import failpoint
from app.jobs.files import Paths, sidecar
from app.jobs.placing import link, sync
from app.jobs.tables import job

Row = sa.Row[Any]

CHAMPION_LOCK = 0x5A1320  # any number, the same for all

# A loss that is not finite is null in its row.
_CONTENDS = sa.and_(
    job.c.ending.is_not(None), job.c.best_val_loss.is_not(None), job.c.comparison_key.is_not(None)
)
_PROMOTED = sa.select(job).where(job.c.is_promoted)
# Of equal losses the one that stood first stands on.
_BEST_OF_KEY = (
    sa.select(job)
    .where(_CONTENDS, job.c.comparison_key == sa.bindparam("key"))
    .order_by(job.c.best_val_loss, job.c.ending)
    .limit(1)
)
# One fold tells little of a model: the file is left to the others.
_NEWEST_KEY = (
    sa.select(job.c.comparison_key)
    .where(_CONTENDS, job.c.config[("data", "fold")].as_string().is_(None))
    .order_by(job.c.ending.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion of a key. `newest` counts the last ending of the key's jobs, for order and paging."""

    row: Row
    newest: int
    is_behind_file: bool


def champion(connection: sa.Connection, key: str) -> Row | None:
    """Find the champion of a comparison key; null when none of its jobs has ended with a best."""
    promoted = connection.execute(_PROMOTED).one_or_none()
    if promoted is not None and promoted.comparison_key == key:
        return promoted
    return connection.execute(_BEST_OF_KEY, {"key": key}).one_or_none()


def champions(
    connection: sa.Connection, *, limit: int, after: int | None = None, path: str | None = None
) -> tuple[Sequence[Champion], bool]:
    """Page through the champions, the key of the job that ended last first. Returns (champions, has_more).

    after: the `newest` of the last one before; path: only keys of jobs with this `data.path`.
    """
    is_promoted = job.c.is_promoted & job.c.comparison_key.is_not(None)
    newest = sa.func.max(sa.func.coalesce(job.c.ending, 0))
    keys = sa.select(job.c.comparison_key, newest.label("newest")).where(_CONTENDS | is_promoted)
    if path is not None:
        keys = keys.where(job.c.config[("data", "path")].as_string() == path)
    keys = keys.group_by(job.c.comparison_key)
    if after is not None:
        keys = keys.having(newest < after)
    found = connection.execute(keys.order_by(newest.desc()).limit(limit + 1)).all()
    behind = behind_file(connection)
    page = [
        Champion(row, last, behind is not None and row.id == behind.id)
        for key, last in found[:limit]
        if (row := champion(connection, key)) is not None
    ]
    return page, len(found) > limit


def champion_ids(connection: sa.Connection, keys: Collection[str]) -> frozenset[str]:
    """Name the champions of some keys."""
    return frozenset(row.id for key in keys if (row := champion(connection, key)) is not None)


def behind_file(connection: sa.Connection) -> Row | None:
    """Find the job whose best `saimp_best.pth` is.

    The promoted one; else the champion of the key of the job that ended last with a best, folds left out.
    """
    promoted = connection.execute(_PROMOTED).one_or_none()
    if promoted is not None:
        return promoted
    key = connection.execute(_NEWEST_KEY).scalar_one_or_none()
    return None if key is None else connection.execute(_BEST_OF_KEY, {"key": key}).one_or_none()


def next_ending(connection: sa.Connection) -> int:
    """Number the ending of a job with a best. Whoever asks waits for those before to commit."""
    in_turn(connection)
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(job.c.ending), 0) + 1)).scalar_one())


def in_turn(connection: sa.Connection) -> None:
    """Wait until nobody else changes which job is the champion, up to the end of this transaction.

    A row's lock is taken before, never after. SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CHAMPION_LOCK})")


def follow(connection: sa.Connection, paths: Paths, *, is_dropped: bool = False) -> None:
    """Make `saimp_best.pth` the best of the job the rows say. Call it in turn.

    Where they name none, or that job's files are gone, what there is stays: it may be all that is left of a
    training. is_dropped: its job has been deleted, and without a next one it goes. Raises OSError.
    """
    row = behind_file(connection)
    if row is None or row.best_file is None:
        if row is None and is_dropped:
            _remove(paths)
        return
    weights = paths.job(row.id) / row.best_file
    names = ((sidecar(weights), sidecar(paths.champion())), (weights, paths.champion()))
    if all(_is_same(source, target) for source, target in names):
        return
    if not all(source.exists() for source, _ in names):
        return
    link(*names[0])
    failpoint("crown.between_links")
    link(*names[1])
    sync(paths.data_root)


def _remove(paths: Paths) -> None:
    paths.champion().unlink(missing_ok=True)
    sidecar(paths.champion()).unlink(missing_ok=True)
    sync(paths.data_root)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    with suppress(FileNotFoundError):
        return one.samefile(other)
    return False
