"""The one door of every change of status: a guarded UPDATE with its event row in the same transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa

from app.db import LOOK_AGAIN_S, Database, when_undone
from app.errors import JobNotFound, ServiceError, StorageUnavailable
from app.jobs import champion
from app.jobs.files import BEST_NAME, Paths
from app.jobs.queue.dependents import FALLEN, WAITING, Falling, falling
from app.jobs.queue.records import CANCELLED, PAUSED, LostJob, Reason, Row, plain
from app.jobs.states import ARRIVES_FROM, ENDINGS, Status
from app.jobs.tables import dependency, event, job

# Made once: to make a statement costs more than to execute it. The columns that change are those it is
# executed with, beside what these say.
_OF_ID = job.c.id == sa.bindparam("of_id")
_GET = sa.select(job).where(_OF_ID)
_GET_LOCKED = _GET.with_for_update()
_NOTE = job.update().where(_OF_ID).values(seq=job.c.seq + 1).returning(job.c.seq, job.c.attempt)
_MOVE = (
    job.update()
    .where(_OF_ID, job.c.attempt == sa.bindparam("of_attempt"), job.c.status == sa.bindparam("of_status"))
    .values(seq=job.c.seq + 1)
    .returning(job.c.seq)
)
_END = job.update().where(_OF_ID)
_EVENT = event.insert()
# What a change of status must know of a row.
OF_MOVE = ("id", "attempt", "status", "seq", "runtime_s", "attempt_started_at")
_FALLING = (
    sa.select(*(job.c[name] for name in OF_MOVE))
    .where(job.c.id.in_(sa.bindparam("ids", expanding=True)), job.c.status.in_(WAITING))
    .order_by(job.c.id)  # two that take the same jobs along do not wait for each other
    .with_for_update(of=job)
)
_FALL = job.update().where(_OF_ID).values(seq=job.c.seq + 1)

# How many jobs fall in one transaction, so that nobody waits long for the next turn to write.
BATCH = 500
# And how long the turn is left to others: whoever waits for it looks every few milliseconds.
LET_OTHERS_S = 2 * LOOK_AGAIN_S[1]

_log = logging.getLogger("saimp.queue")


class Door:
    """What every part of the queue stands on.

    now: the clock, so that tests can turn it. paths: where `saimp_best.pth` is kept; null = nowhere.
    """

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        paths: Paths | None = None,
    ) -> None:
        self.database = database
        self.now = now
        self.paths = paths
        self._unfollowed: int | None = None  # why the file last failed to follow, if it did

    @staticmethod
    def _get(connection: sa.Connection, job_id: str, *, is_locked: bool = False) -> Row:
        """Read one job; locked, nobody else changes it before this transaction ends. Raises JobNotFound."""
        row = connection.execute(_GET_LOCKED if is_locked else _GET, {"of_id": job_id}).one_or_none()
        if row is None:
            raise JobNotFound(hint="GET /jobs lists the jobs there are.")
        return row

    def cancel_dependents(self, lost_id: str | None = None) -> None:
        """Cancel what waits for a job that did not succeed, in batches, each a transaction of its own.

        The verbs that end a job do so by themselves. Whom they did not reach, or who was submitted meanwhile,
        is never claimed: whoever calls this next goes on with it. lost_id: null = of whatever job.
        """
        with self.database.reading() as connection:
            ahead = list(falling(connection, lost_id))
        for start in range(0, len(ahead), BATCH):
            with self.database.writing() as connection:
                self._fall(connection, ahead[start : start + BATCH])
            time.sleep(LET_OTHERS_S)

    @contextmanager
    def _ending(self, verb: str, job_id: str) -> Iterator[sa.Connection]:
        """Write in one transaction that may end a job; the dependents it has no room for fall behind it."""
        with self.database.writing(verb) as connection:
            yield connection
        self._cancel_the_rest(job_id)

    def _cancel_the_rest(self, job_id: str) -> None:
        try:
            self.cancel_dependents(job_id)
        except StorageUnavailable as error:  # the job itself has ended
            _log.warning("dependents of %s are cancelled later: %s", job_id, error.message)

    def _finish(self, connection: sa.Connection, row: Row, reason: Reason) -> Status:
        to = ENDINGS[reason.code]
        self._move(connection, row, to, "finished", reason, finished_at=self.now(), run_after=None)
        if to != Status.SUCCEEDED:
            self._fall(connection, list(islice(falling(connection, row.id), BATCH)))
        if row.best_file is not None:  # last: others wait for this turn
            connection.execute(_END, {"of_id": row.id, "ending": champion.next_ending(connection)})
            self._crown(connection)
        return to

    def follow_champion(self) -> None:
        """Put right what a crash or a failure has left between the rows and `saimp_best.pth`."""
        with self.database.writing() as connection:
            self._crown(connection, has_changed=False)

    def _crown(
        self, connection: sa.Connection, *, is_dropped: bool = False, has_changed: bool = True
    ) -> None:
        """Let `saimp_best.pth` follow the rows. A disk that fails it keeps no job from its end.

        has_changed: whether this transaction has changed the rows, which may come to nothing.
        """
        try:
            self._follow(connection, is_dropped=is_dropped, has_changed=has_changed)
        except OSError as error:
            if error.errno != self._unfollowed:  # every beat of a worker tries again
                _log.warning("%s does not follow its champion yet: %s", BEST_NAME, error.strerror)
            self._unfollowed = error.errno

    def _follow(
        self, connection: sa.Connection, *, is_dropped: bool = False, has_changed: bool = True
    ) -> None:
        if self.paths is not None:
            champion.in_turn(connection)
            if has_changed:
                when_undone(connection, self._follow_again)
            champion.follow(connection, self.paths, is_dropped=is_dropped)
            self._unfollowed = None

    def _follow_again(self) -> None:
        """Take the file back to what the rows say, after a transaction that came to nothing."""
        try:
            self.follow_champion()
        except ServiceError as error:
            _log.warning("%s follows its champion later: %s", BEST_NAME, error.message)

    def _cancel(self, connection: sa.Connection, row: Row) -> Status:
        return self._finish(connection, row, CANCELLED)

    def _pause(self, connection: sa.Connection, row: Row, reason: Reason = PAUSED) -> Status:
        self._move(connection, row, Status.PAUSED, "paused", reason, run_after=None)
        return Status.PAUSED

    def _requeue(
        self,
        connection: sa.Connection,
        row: Row,
        reason: Reason,
        event_kind: str,
        run_after: datetime | None = None,
    ) -> Status:
        self._move(connection, row, Status.QUEUED, event_kind, reason, run_after=run_after)
        return Status.QUEUED

    def _fall(self, connection: sa.Connection, ahead: Sequence[Falling]) -> None:
        """Cancel those that still wait. None has ever run: to start takes the success of all it needs."""
        if not ahead:
            return
        found = connection.execute(_FALLING, {"ids": [one.job_id for one in ahead]})
        rows = {row.id: row for row in found}
        now = self.now()
        moves, events = [], []
        for job_id, because_of in ahead:
            if (row := rows.get(job_id)) is not None:
                message = f"Job {because_of}, which this one depends on, did not succeed."
                reason = Reason(FALLEN, message)
                ended = {"finished_at": now, "run_after": None}
                moves.append({"of_id": job_id, **self._changes(row, ENDINGS[FALLEN], reason), **ended})
                told = _told(ENDINGS[FALLEN], reason)
                events.append(self._line(job_id, row.attempt, row.seq + 1, "finished", told))
        if moves:
            connection.execute(_FALL, moves)
            connection.execute(_EVENT, events)

    def _move(
        self, connection: sa.Connection, row: Row, to: Status, event_kind: str, reason: Reason, **values: Any
    ) -> None:
        was = Status(row.status)
        assert was in ARRIVES_FROM[to], (was, to)
        expected = {"of_id": row.id, "of_attempt": row.attempt, "of_status": was}
        changes = {**self._changes(row, to, reason), **values}
        seq = connection.execute(_MOVE, {**expected, **changes}).scalar_one_or_none()
        if seq is None:
            raise LostJob(row.id)
        self._append(connection, row.id, row.attempt, seq, event_kind, _told(to, reason))

    def _changes(self, row: Row, to: Status, reason: Reason) -> dict[str, Any]:
        """Say what a change of status does to a job's columns."""
        return {
            "status": to,
            "phase": None,
            "slot": None,
            "owner": None,
            "lease_until": None,
            "pause_requested_at": None,
            "reason_code": reason.code,
            "reason_message": plain(reason.message),
            "reason_hint": plain(reason.hint),
            "runtime_s": row.runtime_s + self._ran_s(row),
        }

    def _note(
        self,
        connection: sa.Connection,
        job_id: str,
        events: Iterable[tuple[str, Mapping[str, Any]]],
        **values: Any,
    ) -> None:
        """Append events, and change columns that are not the status, in the caller's transaction."""
        for kind, data in events:
            row = connection.execute(_NOTE, {"of_id": job_id, **values}).one()
            self._append(connection, job_id, row.attempt, row.seq, kind, data)

    def _append(
        self,
        connection: sa.Connection,
        job_id: str,
        attempt: int,
        seq: int,
        kind: str,
        data: Mapping[str, Any],
    ) -> None:
        connection.execute(_EVENT, self._line(job_id, attempt, seq, kind, data))

    def _line(
        self, job_id: str, attempt: int, seq: int, kind: str, data: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make a line of a job's history."""
        return {
            "job_id": job_id,
            "seq": seq,
            "time": self.now(),
            "kind": kind,
            "attempt": attempt,
            "data": dict(data),
        }

    def _ran_s(self, row: Row) -> float:
        if row.status != Status.RUNNING or row.attempt_started_at is None:
            return 0.0
        return float(max(0.0, (self.now() - row.attempt_started_at).total_seconds()))


def _told(to: Status, reason: Reason) -> dict[str, Any]:
    """Tell the history of a change of status."""
    return {"status": to, "code": reason.code, "message": plain(reason.message)}


def held(job_id: str | sa.ColumnElement[str], attempt: int | sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Whether an attempt still owns its job."""
    return sa.and_(job.c.id == job_id, job.c.attempt == attempt, job.c.status == Status.RUNNING)


def in_turn(table: Any = job) -> tuple[sa.ColumnElement[Any], ...]:
    """Order jobs as they run: priority, then place, then age."""
    return table.c.priority.desc(), table.c.place.desc(), table.c.id


def unmet(job_id: str | sa.Column[str]) -> sa.Select[str]:
    """Select the dependencies of a job that have not succeeded yet."""
    needed = job.alias("needed")
    return (
        sa.select(needed.c.id)
        .join(dependency, dependency.c.needs_id == needed.c.id)
        .where(dependency.c.job_id == job_id, needed.c.status != Status.SUCCEEDED)
    )
