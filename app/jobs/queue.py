"""The queue: submit, claim, record, finish, release, crash, cancel. Each verb is one transaction.

A change of status is one guarded UPDATE (`_move`) with its event row in the same transaction. Whatever a
worker writes carries the attempt it holds; zero rows changed means the job is no longer its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import sqlalchemy as sa

from app.db import Database
from app.errors import IllegalTransition, InvalidRequest, JobNotFound, Problem, ServiceError
from app.jobs.config import JobRequest, canonical, config_hash
from app.jobs.ids import new_id
from app.jobs.states import ARRIVES_FROM, ENDINGS, FINAL, Status
from app.jobs.tables import batch_row, dependency, epoch_row, event, job, system_row, worker

# First restart at once, then after 5 s, then after 30 s.
BACKOFF_S = (0.0, 5.0, 30.0)

Row = sa.Row[Any]


# More waiting jobs than this are a mistake of a script.
MAX_QUEUED = 10_000


class QueueFull(ServiceError):
    """Too many jobs wait already."""

    status, code = 429, "queue_full"
    headers: ClassVar = {"Retry-After": "60"}


class KeyReuse(ServiceError):
    """This Idempotency-Key was used for another body."""

    status, code = 409, "key_reuse"


class LostJob(Exception):
    """The attempt no longer owns its job: another holds a newer token, or the job has ended."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that runs a job: enough to tell later whether it still lives."""

    host: str
    boot_id: str
    pid: int
    pid_start: float

    def as_json(self) -> dict[str, Any]:
        return {"host": self.host, "boot_id": self.boot_id, "pid": self.pid, "pid_start": self.pid_start}


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in the hands of a worker. `attempt` is its fencing token."""

    job_id: str
    attempt: int
    config: dict[str, Any]
    resolved: dict[str, Any] | None
    data_fingerprint: str | None
    log_name: str | None
    claimed_at: datetime
    runtime_s: float  # of earlier attempts


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job is where it is: a code of the contract, a sentence, what to do."""

    code: str
    message: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What an attempt reported since the last commit; written in one transaction."""

    events: Sequence[tuple[str, Mapping[str, Any]]] = ()  # (kind, data)
    batches: Sequence[Mapping[str, Any]] = ()  # columns of batch_row
    epochs: Sequence[Mapping[str, Any]] = ()  # columns of epoch_row
    systems: Sequence[Mapping[str, Any]] = ()  # columns of system_row
    progress: Mapping[str, Any] | None = None  # columns of job


class Queue:
    """The queue of one database. `now` is the clock, so that tests can turn it."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.database = database
        self.now = now

    # ---- by users ----

    def submit(
        self,
        request: JobRequest,
        *,
        data_fingerprint: str | None = None,
        plan: Mapping[str, Any] | None = None,
        warnings: Sequence[Mapping[str, str]] = (),
        idempotency_key: str | None = None,
    ) -> tuple[Row, bool]:
        """Queue a job and return (its row, whether it is new); a repeated key returns the first job.

        Raises KeyReuse when the key came with another body, InvalidRequest for impossible dependencies.
        """
        config = request.model_dump(mode="json")
        now = self.now()
        with self.database.writing() as connection:
            if idempotency_key is not None:
                first = self._first(connection, idempotency_key, config)
                if first is not None:
                    return first, False
            self._refuse_when_full(connection)
            problems = self._dead_dependencies(connection, request.depends_on)
            if problems:
                raise InvalidRequest("a job this one depends on can never succeed", problems=problems)
            job_id = new_id()
            connection.execute(
                job.insert().values(
                    id=job_id,
                    name=request.name,
                    tags=request.tags,
                    metadata=request.metadata,
                    status=Status.QUEUED,
                    priority=request.priority,
                    run_after=request.not_before,
                    max_attempts=request.max_attempts,
                    attempt=0,
                    crashes=0,
                    config=config,
                    config_hash=config_hash(request),
                    warnings=list(warnings),
                    plan=plan,
                    data_fingerprint=data_fingerprint,
                    idempotency_key=idempotency_key,
                    created_at=now,
                    runtime_s=0.0,
                    seq=0,
                )
            )
            for needs_id in dict.fromkeys(request.depends_on):
                connection.execute(dependency.insert().values(job_id=job_id, needs_id=needs_id))
            self._note(connection, job_id, [("submitted", {})])
            return connection.execute(sa.select(job).where(job.c.id == job_id)).one(), True

    def submitted(self, request: JobRequest, idempotency_key: str) -> Row | None:
        """Find the job a key has made. Raises KeyReuse when the key came with another body."""
        with self.database.reading() as connection:
            return self._first(connection, idempotency_key, request.model_dump(mode="json"))

    @staticmethod
    def _first(connection: sa.Connection, idempotency_key: str, config: Mapping[str, Any]) -> Row | None:
        first = connection.execute(
            sa.select(job).where(job.c.idempotency_key == idempotency_key)
        ).one_or_none()
        if first is not None and canonical(first.config) != canonical(config):
            raise KeyReuse(hint=f"It made job {first.id}. Use a new key for a new job.")
        return first

    @staticmethod
    def _refuse_when_full(connection: sa.Connection) -> None:
        queued = sa.select(sa.func.count()).select_from(job).where(job.c.status == Status.QUEUED)
        if connection.execute(queued).scalar_one() >= MAX_QUEUED:
            raise QueueFull(f"{MAX_QUEUED} jobs wait already.", "Cancel some, or submit again later.")

    def dead_dependencies(self, needs: Sequence[str]) -> list[Problem]:
        """List the dependencies that can never succeed, or do not exist."""
        with self.database.reading() as connection:
            return self._dead_dependencies(connection, needs)

    @staticmethod
    def _dead_dependencies(connection: sa.Connection, needs: Sequence[str]) -> list[Problem]:
        problems = []
        for place, needs_id in enumerate(needs):
            status = connection.execute(
                sa.select(job.c.status).where(job.c.id == needs_id)
            ).scalar_one_or_none()
            pointer = f"/depends_on/{place}"
            if status is None:
                problems.append(Problem(pointer, "job_not_found", "no job has this id"))
            elif status in FINAL and status != Status.SUCCEEDED:
                problems.append(Problem(pointer, "dependency_failed", f"this job has {status}"))
        return problems

    def get(self, job_id: str) -> Row:
        """Read one job. Raises JobNotFound."""
        with self.database.reading() as connection:
            return self._get(connection, job_id)

    @staticmethod
    def _get(connection: sa.Connection, job_id: str) -> Row:
        row = connection.execute(sa.select(job).where(job.c.id == job_id)).one_or_none()
        if row is None:
            raise JobNotFound(hint="GET /jobs lists the jobs there are.")
        return row

    def page(
        self,
        *,
        statuses: Sequence[Status] = (),
        tag: str | None = None,
        text: str | None = None,
        newest_first: bool = True,
        limit: int = 50,
        after: str | None = None,
    ) -> tuple[Sequence[Row], bool]:
        """Page through the jobs by id, behind the last id of the page before. Returns (rows, has_more)."""
        query = sa.select(job)
        if statuses:
            query = query.where(job.c.status.in_(list(statuses)))
        if tag is not None:
            # Tags are a JSON list of printable strings: the quoted tag occurs in its text.
            query = query.where(
                sa.cast(job.c.tags, sa.Text).contains(canonical([tag])[1:-1], autoescape=True)
            )
        if text is not None:
            query = query.where(
                job.c.name.icontains(text, autoescape=True) | job.c.id.istartswith(text, autoescape=True)
            )
        if after is not None:
            query = query.where(job.c.id < after if newest_first else job.c.id > after)
        query = query.order_by(job.c.id.desc() if newest_first else job.c.id).limit(limit + 1)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return rows[:limit], len(rows) > limit

    def position(self, row: Row) -> int | None:
        """Count the place of a queued job, from 1; null when it is not queued."""
        if row.status != Status.QUEUED:
            return None
        ahead = sa.select(sa.func.count()).where(
            job.c.status == Status.QUEUED,
            (job.c.priority > row.priority) | ((job.c.priority == row.priority) & (job.c.id < row.id)),
        )
        with self.database.reading() as connection:
            return int(connection.execute(ahead).scalar_one()) + 1

    def line(self) -> Sequence[Row]:
        """List the queued jobs in the order they would be claimed, without their configs."""
        names = ["id", "name", "status", "priority", "run_after", "created_at"]
        reason = ["reason_code", "reason_message", "reason_hint"]
        with self.database.reading() as connection:
            return connection.execute(
                sa.select(*(job.c[name] for name in names + reason))
                .where(job.c.status == Status.QUEUED)
                .order_by(job.c.priority.desc(), job.c.id)
            ).all()

    def waits_for(self, job_id: str) -> Sequence[str]:
        """List the dependencies of a job that have not succeeded yet."""
        with self.database.reading() as connection:
            return connection.execute(_unmet(job_id)).scalars().all()

    def waiting(self) -> dict[str, list[str]]:
        """Map each queued job that has unmet dependencies to them."""
        needed = job.alias("needed")
        unmet: dict[str, list[str]] = {}
        with self.database.reading() as connection:
            for job_id, needs_id in connection.execute(
                sa.select(dependency.c.job_id, dependency.c.needs_id)
                .join(job, job.c.id == dependency.c.job_id)
                .join(needed, needed.c.id == dependency.c.needs_id)
                .where(job.c.status == Status.QUEUED, needed.c.status != Status.SUCCEEDED)
                .order_by(dependency.c.needs_id)
            ):
                unmet.setdefault(job_id, []).append(needs_id)
        return unmet

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Row]:
        """Read the history of a job behind sequence number `after`. Raises JobNotFound."""
        with self.database.reading() as connection:
            self._get(connection, job_id)
            return connection.execute(
                sa.select(event)
                .where(event.c.job_id == job_id, event.c.seq > after)
                .order_by(event.c.seq)
                .limit(limit)
            ).all()

    def cancel(self, job_id: str) -> tuple[Row, bool]:
        """Cancel a job: at once when it waits; else ask its worker. Returns (row, done).

        A repeated cancel changes nothing. Raises JobNotFound, IllegalTransition when it ended otherwise.
        """
        with self.database.writing() as connection:
            row = self._get(connection, job_id)
            if row.status in (Status.QUEUED, Status.PAUSED):
                self._finish(connection, row, Reason("user", "Cancelled by the user."), row.status)
            elif row.status == Status.RUNNING:
                if row.cancel_requested_at is None:
                    self._note(connection, job_id, [("cancel_requested", {})], cancel_requested_at=self.now())
            elif row.status != Status.CANCELLED:
                raise IllegalTransition(f"The job has already {row.status}; it cannot be cancelled.")
            row = self._get(connection, job_id)
            return row, row.status == Status.CANCELLED

    # ---- by the worker ----

    def claim(self, owner: Owner, slot: str) -> Claim | None:
        """Take the next job that may run: highest priority, then oldest. Null when there is none."""
        now = self.now()
        unmet = sa.exists(_unmet(job.c.id).correlate(job))
        # PostgreSQL skips rows another claim holds; SQLite has one writer, and no such clause.
        chosen = (
            sa.select(job.c.id)
            .where(
                job.c.status == Status.QUEUED, (job.c.run_after.is_(None)) | (job.c.run_after <= now), ~unmet
            )
            .order_by(job.c.priority.desc(), job.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        with self.database.writing() as connection:
            row = connection.execute(
                job.update()
                .where(job.c.id == chosen, job.c.status == Status.QUEUED)
                .values(
                    status=Status.RUNNING,
                    phase="preparing",
                    attempt=job.c.attempt + 1,
                    slot=slot,
                    owner=owner.as_json(),
                    heartbeat_at=now,
                    started_at=sa.func.coalesce(job.c.started_at, sa.literal(now, job.c.started_at.type)),
                    attempt_started_at=now,
                    reason_code=None,
                    reason_message=None,
                    reason_hint=None,
                )
                .returning(*job.c)
            ).one_or_none()
            if row is None:
                return None
            self._note(connection, row.id, [("claimed", {"slot": slot, "pid": owner.pid})])
            return Claim(
                job_id=row.id,
                attempt=row.attempt,
                config=row.config,
                resolved=row.resolved,
                data_fingerprint=row.data_fingerprint,
                log_name=row.log_name,
                claimed_at=now,
                runtime_s=row.runtime_s,
            )

    def name_log(self, job_id: str, attempt: int, log_name: str) -> None:
        """Say which log the job writes to, once, at its first claim. Raises LostJob."""
        self.record(job_id, attempt, Facts(progress={"log_name": log_name}))

    def record(self, job_id: str, attempt: int, facts: Facts) -> bool:
        """Write what an attempt reported, heartbeat included. Returns whether a cancel is asked for.

        Raises LostJob, having changed nothing, when the attempt no longer owns the job.
        """
        with self.database.writing() as connection:
            held = self._write(connection, job_id, attempt, facts)
            return held.cancel_requested_at is not None

    def _write(self, connection: sa.Connection, job_id: str, attempt: int, facts: Facts) -> Row:
        now = self.now()
        count = sum(map(len, (facts.events, facts.batches, facts.epochs, facts.systems)))
        held = connection.execute(
            job.update()
            .where(_held(job_id, attempt))
            .values(seq=job.c.seq + count, heartbeat_at=now, **(facts.progress or {}))
            .returning(*job.c)
        ).one_or_none()
        if held is None:
            raise LostJob(job_id)
        numbers = iter(range(held.seq - count + 1, held.seq + 1))
        for table, rows in (
            (batch_row, facts.batches),
            (epoch_row, facts.epochs),
            (system_row, facts.systems),
        ):
            if rows:
                connection.execute(
                    table.insert(), [{**row, "job_id": job_id, "seq": next(numbers)} for row in rows]
                )
        for (kind, data), seq in zip(facts.events, numbers, strict=True):
            connection.execute(
                event.insert().values(
                    job_id=job_id, seq=seq, time=now, kind=kind, attempt=attempt, data=dict(data)
                )
            )
        return held

    def restart(self, job_id: str, attempt: int) -> None:
        """Begin an attempt from zero: rows of earlier attempts go, in the transaction that says so.

        Raises LostJob.
        """
        with self.database.writing() as connection:
            if not connection.execute(
                job.update()
                .where(_held(job_id, attempt))
                .values(
                    epoch=None,
                    batch=None,
                    best_epoch=None,
                    best_val_loss=None,
                    best_val_accuracy=None,
                    best_file=None,
                    best_sha256=None,
                    best_bytes=None,
                )
            ).rowcount:
                raise LostJob(job_id)
            for table in (batch_row, epoch_row):
                connection.execute(table.delete().where(table.c.job_id == job_id))
            self._note(connection, job_id, [("resumed", {"epoch": 1, "batch": 0})])

    def finish(self, job_id: str, attempt: int, reason: Reason, facts: Facts = Facts()) -> None:
        """End a running job for good, its last facts in the same transaction. Raises LostJob."""
        with self.database.writing() as connection:
            row = self._write(connection, job_id, attempt, facts)
            self._finish(connection, row, reason, Status.RUNNING)

    def release(self, job_id: str, attempt: int, reason: Reason, facts: Facts = Facts()) -> None:
        """Put a running job back: a graceful stop, which costs no crash. Raises LostJob."""
        with self.database.writing() as connection:
            row = self._write(connection, job_id, attempt, facts)
            if row.cancel_requested_at is not None:
                self._finish(connection, row, Reason("user", "Cancelled by the user."), Status.RUNNING)
                return
            self._requeue(connection, row, reason, event_kind="released")

    def crash(self, job_id: str, attempt: int, reason: Reason, facts: Facts = Facts()) -> Status:
        """Record an attempt that died: queue it again while the budget lasts, else fail it. Raises LostJob.

        reason: what killed it; a code the budget ends with, such as native_crash, stays, others become
        crash_loop.
        """
        with self.database.writing() as connection:
            row = self._write(connection, job_id, attempt, facts)
            crashes = row.crashes + 1
            self._note(
                connection,
                job_id,
                [("crashed", {"code": reason.code, "message": reason.message})],
                crashes=crashes,
            )
            if row.cancel_requested_at is not None:
                self._finish(connection, row, Reason("user", "Cancelled by the user."), Status.RUNNING)
                return Status.CANCELLED
            if crashes >= row.max_attempts:
                code = reason.code if reason.code in ("native_crash", "host_out_of_memory") else "crash_loop"
                message = f"{reason.message} That was crash {crashes} of {row.max_attempts} in a row."
                self._finish(connection, row, Reason(code, message, reason.hint), Status.RUNNING)
                return Status.FAILED
            backoff_s = BACKOFF_S[min(crashes, len(BACKOFF_S)) - 1]
            self._requeue(
                connection,
                row,
                Reason("backoff", reason.message, reason.hint),
                event_kind="requeued",
                run_after=self.now() + timedelta(seconds=backoff_s),
            )
            return Status.QUEUED

    def orphans(self, slot: str) -> Sequence[Row]:
        """List the jobs a slot is said to run; its new holder asks, when the old one is gone."""
        with self.database.reading() as connection:
            return connection.execute(
                sa.select(job).where(job.c.status == Status.RUNNING, job.c.slot == slot)
            ).all()

    def greet(self, owner: Owner, slot: str, machine: Mapping[str, Any]) -> None:
        """Say which supervisor serves a slot, and on what machine."""
        now = self.now()
        values = {
            "owner": owner.as_json(),
            "machine": dict(machine),
            "started_at": now,
            "heartbeat_at": now,
        }
        with self.database.writing() as connection:
            if not connection.execute(worker.update().where(worker.c.slot == slot).values(**values)).rowcount:
                connection.execute(worker.insert().values(slot=slot, **values))

    def beat(self, slot: str) -> None:
        """Say that the supervisor of a slot lives."""
        with self.database.writing() as connection:
            connection.execute(worker.update().where(worker.c.slot == slot).values(heartbeat_at=self.now()))

    def leave(self, slot: str) -> None:
        """Say that the supervisor of a slot has gone."""
        with self.database.writing() as connection:
            connection.execute(worker.delete().where(worker.c.slot == slot))

    def workers(self) -> Sequence[Row]:
        """List the supervisors that have said they serve a slot."""
        with self.database.reading() as connection:
            return connection.execute(sa.select(worker).order_by(worker.c.slot)).all()

    # ---- the one door of every change of status ----

    def _finish(
        self, connection: sa.Connection, row: Row, reason: Reason, was: Status, **values: Any
    ) -> None:
        to = ENDINGS[reason.code]
        self._move(
            connection,
            row,
            was,
            to,
            "finished",
            reason,
            finished_at=self.now(),
            runtime_s=row.runtime_s + self._ran_s(row, was),
            **values,
        )
        if to != Status.SUCCEEDED:
            self._cancel_dependents(connection, row.id)

    def _requeue(
        self, connection: sa.Connection, row: Row, reason: Reason, *, event_kind: str, **values: Any
    ) -> None:
        runtime_s = row.runtime_s + self._ran_s(row, Status.RUNNING)
        self._move(
            connection, row, Status.RUNNING, Status.QUEUED, event_kind, reason, runtime_s=runtime_s, **values
        )

    def _cancel_dependents(self, connection: sa.Connection, job_id: str) -> None:
        waiting = connection.execute(
            sa.select(job)
            .join(dependency, dependency.c.job_id == job.c.id)
            .where(dependency.c.needs_id == job_id, job.c.status.in_([Status.QUEUED, Status.PAUSED]))
        ).all()
        for row in waiting:
            message = f"Job {job_id}, which this one depends on, did not succeed."
            self._finish(connection, row, Reason("dependency_failed", message), Status(row.status))

    def _move(
        self,
        connection: sa.Connection,
        row: Row,
        was: Status,
        to: Status,
        event_kind: str,
        reason: Reason,
        **values: Any,
    ) -> None:
        assert was in ARRIVES_FROM[to], (was, to)
        moved = connection.execute(
            job.update()
            .where(job.c.id == row.id, job.c.attempt == row.attempt, job.c.status == was)
            .values(
                status=to,
                phase=None,
                slot=None,
                owner=None,
                reason_code=reason.code,
                reason_message=reason.message,
                reason_hint=reason.hint,
                **values,
            )
        )
        if not moved.rowcount:
            raise LostJob(row.id)
        self._note(
            connection, row.id, [(event_kind, {"status": to, "code": reason.code, "message": reason.message})]
        )

    def _note(
        self,
        connection: sa.Connection,
        job_id: str,
        events: Iterable[tuple[str, Mapping[str, Any]]],
        **values: Any,
    ) -> None:
        """Append events, and change columns that are not the status, in the caller's transaction."""
        for kind, data in events:
            row = connection.execute(
                job.update()
                .where(job.c.id == job_id)
                .values(seq=job.c.seq + 1, **values)
                .returning(job.c.seq, job.c.attempt)
            ).one()
            connection.execute(
                event.insert().values(
                    job_id=job_id,
                    seq=row.seq,
                    time=self.now(),
                    kind=kind,
                    attempt=row.attempt,
                    data=dict(data),
                )
            )

    def _ran_s(self, row: Row, was: Status) -> float:
        if was != Status.RUNNING:
            return 0.0
        return float(max(0.0, (self.now() - row.attempt_started_at).total_seconds()))


def _held(job_id: str, attempt: int) -> sa.ColumnElement[bool]:
    return sa.and_(job.c.id == job_id, job.c.attempt == attempt, job.c.status == Status.RUNNING)


def _unmet(job_id: str | sa.Column[str]) -> sa.Select[str]:
    needed = job.alias("needed")
    return (
        sa.select(needed.c.id)
        .join(dependency, dependency.c.needs_id == needed.c.id)
        .where(dependency.c.job_id == job_id, needed.c.status != Status.SUCCEEDED)
    )
