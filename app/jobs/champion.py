"""The champions: of each comparison key the best job that has ended, or the one a user has promoted.

The rows alone say which it is. `saimp_best.pth` in the data root follows them, inside the transaction that
changes them: so it is right before anybody can read that a job has ended. When that transaction comes to
nothing, it follows once more; a crash in between is put right at the next start, ending or beat of a worker.
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
from app.jobs.placing import link, read_json, sync
from app.jobs.tables import job

Row = sa.Row[Any]

CHAMPION_LOCK = 0x5A1320  # any number, the same for all

# A loss that is not finite is null in its row.
_CONTENDS = sa.and_(
    job.c.ending.is_not(None), job.c.best_val_loss.is_not(None), job.c.comparison_key.is_not(None)
)
# A promotion stands while its job has no best, as after a rewind to zero; it names no champion then. In plain
# words: "is_promoted = 1", as SQLAlchemy would write it for SQLite, is not what its index is of.
_IS_PROMOTED = sa.and_(sa.literal_column("job.is_promoted"), job.c.best_file.is_not(None))
_WHO = (job.c.id, job.c.comparison_key, job.c.best_file, job.c.best_sha256)
# Of equal losses the one that stood first stands on.
_ORDER = (job.c.best_val_loss, job.c.ending)
# One fold tells little of a model: the file is left to the others.
_IS_WHOLE = job.c.config[("data", "fold")].as_string().is_(None)

_PROMOTED: sa.Select[Any] = sa.select(*_WHO).where(_IS_PROMOTED)
_BEST_OF_KEY: sa.Select[Any] = (
    sa.select(*_WHO).where(_CONTENDS, job.c.comparison_key == sa.bindparam("key")).order_by(*_ORDER).limit(1)
)
_NEWEST_KEY = (
    sa.select(job.c.comparison_key).where(_CONTENDS, _IS_WHOLE).order_by(job.c.ending.desc()).limit(1)
)


def _bests_of_keys() -> sa.Select[Any]:
    """For each key one look into the index: a rank of all jobs of a key would read them all."""
    other = job.alias("other")
    asked: sa.BindParameter[Any] = sa.bindparam("keys", expanding=True)
    keys = (
        sa.select(other.c.comparison_key.label("key")).where(other.c.comparison_key.in_(asked)).distinct()
    ).subquery("keys")
    best = (
        sa.select(job.c.id)
        .where(_CONTENDS, job.c.comparison_key == keys.c.key)
        .order_by(*_ORDER)
        .limit(1)
        .scalar_subquery()
    )
    return sa.select(keys.c.key, best.label("id"))


def _line_for_file() -> sa.Select[Any]:
    newest = sa.func.max(job.c.ending).over(partition_by=job.c.comparison_key)
    return sa.select(*_WHO).where(_CONTENDS, _IS_WHOLE).order_by(newest.desc(), *_ORDER)


_BESTS_OF_KEYS = _bests_of_keys()
_LINE_FOR_FILE = _line_for_file()


@dataclass(frozen=True, slots=True)
class Champion:
    """The champion of a key. `newest` counts the last ending of the key's jobs, for order and paging."""

    row: Row
    newest: int
    is_behind_file: bool


def champion(connection: sa.Connection, key: str) -> Row | None:
    """Find the champion of a comparison key; null when none of its jobs has ended with a best."""
    ids = _by_key(connection, [key], _promoted(connection))
    return _rows(connection, ids.values()).get(ids.get(key))


def champion_ids(connection: sa.Connection, keys: Collection[str]) -> frozenset[str]:
    """Name the champions of some keys."""
    return frozenset(_by_key(connection, keys, _promoted(connection)).values())


def champions(
    connection: sa.Connection,
    paths: Paths | None,
    *,
    limit: int,
    after: int | None = None,
    path: str | None = None,
) -> tuple[Sequence[Champion], bool]:
    """Page through the champions, the key of the job that ended last first. Returns (champions, has_more).

    after: the `newest` of the last one before; path: only keys of jobs with this `data.path`.
    """
    promoted = _promoted(connection)
    jobs = sa.select(job.c.comparison_key, sa.func.coalesce(job.c.ending, 0).label("ending"))
    those = [jobs.where(_CONTENDS)]
    if promoted is not None and promoted.comparison_key is not None:
        those.append(jobs.where(job.c.id == promoted.id))  # it may still run
    if path is not None:
        those = [some.where(job.c.config[("data", "path")].as_string() == path) for some in those]
    either = sa.union_all(*those).subquery()
    newest = sa.func.max(either.c.ending)
    keys = sa.select(either.c.comparison_key, newest).group_by(either.c.comparison_key)
    if after is not None:
        keys = keys.having(newest < after)
    found = connection.execute(keys.order_by(newest.desc()).limit(limit + 1)).all()
    ids = _by_key(connection, [key for key, _ in found[:limit]], promoted)
    rows = _rows(connection, ids.values())
    behind = _behind_file(connection, paths, promoted)
    behind_id = None if behind is None else behind.id
    page = [Champion(rows[ids[key]], last, ids[key] == behind_id) for key, last in found[:limit]]
    return page, len(found) > limit


def behind_file(connection: sa.Connection, paths: Paths | None) -> Row | None:
    """Find the job whose best `saimp_best.pth` is: its id, comparison_key, best_file, best_sha256.

    The promoted one; else the champion of the key of the job that ended last with a best, folds left out.
    Who can no longer give the file, because its own files are gone, is passed over. paths: null = nobody asks
    for files.
    """
    return _behind_file(connection, paths, _promoted(connection))


def _promoted(connection: sa.Connection) -> Row | None:
    return connection.execute(_PROMOTED).one_or_none()


def _by_key(connection: sa.Connection, keys: Collection[str], promoted: Row | None) -> dict[str, str]:
    """Name the champion of each key that has one."""
    found = connection.execute(_BESTS_OF_KEYS, {"keys": list(keys)})
    ids = {row.key: row.id for row in found if row.id is not None}
    if promoted is not None and promoted.comparison_key in keys:
        ids[promoted.comparison_key] = promoted.id
    return ids


def _rows(connection: sa.Connection, ids: Collection[str]) -> dict[str | None, Row]:
    found = connection.execute(sa.select(job).where(job.c.id.in_(list(ids))))
    return {row.id: row for row in found}


def _behind_file(connection: sa.Connection, paths: Paths | None, promoted: Row | None) -> Row | None:
    if promoted is not None and _can_give(paths, promoted):
        return promoted
    key = connection.execute(_NEWEST_KEY).scalar_one_or_none()
    if key is None:
        return None
    best = connection.execute(_BEST_OF_KEY, {"key": key}).one()
    if _can_give(paths, best):
        return best
    return next((row for row in connection.execute(_LINE_FOR_FILE) if _can_give(paths, row)), None)


def next_ending(connection: sa.Connection) -> int:
    """Number the ending of a job with a best. Whoever asks waits for those before to commit."""
    in_turn(connection)
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(job.c.ending), 0) + 1)).scalar_one())


def in_turn(connection: sa.Connection) -> None:
    """Wait until nobody else changes which job is the champion, up to the end of this transaction.

    Take it last: whoever waits for it may hold rows of jobs with a best, so no such row is locked behind it;
    and others wait, so nothing slow is done behind it. SQLite has one writer anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CHAMPION_LOCK})")


def follow(connection: sa.Connection, paths: Paths, *, is_dropped: bool = False) -> None:
    """Make `saimp_best.pth` the best of the job the rows say. Call it in turn.

    Where none can give it, what there is stays: it may be all that is left of a training. is_dropped: it is
    of a job that was deleted as the champion; then it goes. Raises OSError.
    """
    row = behind_file(connection, paths)
    if row is None:
        if is_dropped:
            _remove(paths)
        return
    weights = paths.job(row.id) / row.best_file
    names = ((sidecar(weights), sidecar(paths.champion())), (weights, paths.champion()))
    if all(_is_same(source, target) for source, target in names):
        return
    if any(_is_gone(source) for source, _ in names):
        return  # it is there already, under that name alone
    link(*names[0])
    failpoint("crown.between_links")
    link(*names[1])
    sync(paths.data_root)


def holds(paths: Paths, row: Row) -> bool:
    """Whether `saimp_best.pth` says that it is the best of a job."""
    about = read_json(sidecar(paths.champion())) or {}
    return not _is_gone(paths.champion()) and about.get("sha256") == row.best_sha256


def _can_give(paths: Paths | None, row: Row) -> bool:
    if paths is None:
        return True
    weights = paths.job(row.id) / row.best_file
    return not (_is_gone(weights) or _is_gone(sidecar(weights))) or holds(paths, row)


def _remove(paths: Paths) -> None:
    paths.champion().unlink(missing_ok=True)
    sidecar(paths.champion()).unlink(missing_ok=True)
    sync(paths.data_root)


def _is_gone(path: Path) -> bool:
    """Whether a file is not there; one that cannot be looked at may be."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    with suppress(FileNotFoundError):
        return one.samefile(other)
    return False
