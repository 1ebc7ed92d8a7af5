"""The one door of every change of status: a guarded UPDATE with its event row in the same transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from app.db import Database, when_undone
from app.errors import JobNotFound, ServiceError
from app.jobs import champion
from app.jobs.files import BEST_NAME, Paths
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

    def _finish(self, connection: sa.Connection, row: Row, reason: Reason) -> Status:
        to = ENDINGS[reason.code]
        self._move(connection, row, to, "finished", reason, finished_at=self.now(), run_after=None)
        if to != Status.SUCCEEDED:
            self._cancel_dependents(connection, row.id)
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

    def _cancel_dependents(self, connection: sa.Connection, job_id: str) -> None:
        waiting = connection.execute(
            sa.select(job)
            .join(dependency, dependency.c.job_id == job.c.id)
            .where(dependency.c.needs_id == job_id, job.c.status.in_([Status.QUEUED, Status.PAUSED]))
            .order_by(job.c.id)
            .with_for_update(of=job)
        ).all()
        for row in waiting:
            message = f"Job {job_id}, which this one depends on, did not succeed."
            # Two paths may lead to one job: the first has ended it.
            if self._get(connection, row.id).status == row.status:
                self._finish(connection, row, Reason("dependency_failed", message))

    def _move(
        self, connection: sa.Connection, row: Row, to: Status, event_kind: str, reason: Reason, **values: Any
    ) -> None:
        was = Status(row.status)
        assert was in ARRIVES_FROM[to], (was, to)
        message = plain(reason.message)
        changes = {
            "status": to,
            "phase": None,
            "slot": None,
            "owner": None,
            "lease_until": None,
            "pause_requested_at": None,
            "reason_code": reason.code,
            "reason_message": message,
            "reason_hint": plain(reason.hint),
            "runtime_s": row.runtime_s + self._ran_s(row),
            **values,
        }
        expected = {"of_id": row.id, "of_attempt": row.attempt, "of_status": was}
        seq = connection.execute(_MOVE, {**expected, **changes}).scalar_one_or_none()
        if seq is None:
            raise LostJob(row.id)
        told = {"status": to, "code": reason.code, "message": message}
        self._append(connection, row.id, row.attempt, seq, event_kind, told)

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
        connection.execute(
            _EVENT,
            {
                "job_id": job_id,
                "seq": seq,
                "time": self.now(),
                "kind": kind,
                "attempt": attempt,
                "data": dict(data),
            },
        )

    def _ran_s(self, row: Row) -> float:
        if row.status != Status.RUNNING:
            return 0.0
        return float(max(0.0, (self.now() - row.attempt_started_at).total_seconds()))


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
