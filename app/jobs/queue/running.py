"""What a worker does with a job: claim it, write what it reports, end its attempt one way or another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningUpdate

from app.db import UtcTime, later, server_time
from app.jobs.queue.door import OF_MOVE, Door, held, in_turn
from app.jobs.queue.records import (
    NOTHING,
    PAUSED,
    Claim,
    Facts,
    LostJob,
    Order,
    Owner,
    Reason,
    Row,
    Tell,
    Weights,
)
from app.jobs.queue.resuming import newest_checkpoint
from app.jobs.scores import Margins
from app.jobs.states import ENDINGS, Status
from app.jobs.tables import batch_row, checkpoint, dependency, epoch_row, gate, job, system_row

# First restart at once, then after 5 s, then after 30 s.
BACKOFF_S = (0.0, 5.0, 30.0)
# No wait is longer than this; one that seems to be is of a clock that has been put back since.
LONGEST_WAIT_S = 60.0
# How long a host may be silent before another takes its jobs. On one host nobody waits for it.
LEASE_S = 60.0

# Verdicts that outlive the crash budget; others become crash_loop.
_NAMED_CRASHES = ("native_crash", "host_out_of_memory", "stalled", "storage_error")
# Made once: an alias of so many columns costs a millisecond.
_CANDIDATE, _NEEDED = job.alias("candidate"), job.alias("needed")
_BEST_FILE = ("best_file", "best_sha256", "best_bytes")


def _nobody(_status: Status, _code: str) -> None:
    """Tell nobody."""


class Running(Door):
    def claim(self, owner: Owner, slot: str, *, not_on: Sequence[str] = ()) -> Claim | None:
        """Take the next job that may run. Null when there is none, or the queue is drained.

        not_on: devices whose jobs are left to others.
        """
        now = self.now()
        due = {"now": now, "not_on": list(not_on)}
        with self.database.reading() as connection:
            # An idle worker looks often: it shall not stand in the way of those who write.
            if connection.execute(_DUE, due).one_or_none() is None:
                return None
        changes = {
            "status": Status.RUNNING,
            "phase": "preparing",
            "slot": slot,
            "flush": 0,
            "owner": owner.as_json(),
            "heartbeat_at": now,
            "attempt_started_at": now,
            "run_after": None,
            "reason_code": None,
            "reason_message": None,
            "reason_hint": None,
        }
        with self.database.writing("claim") as connection:
            claiming = _claiming(connection.dialect.name)
            row = connection.execute(claiming, {**due, **changes}).one_or_none()
            if row is None:
                return None
            told = {"slot": slot, "pid": owner.pid}
            self._append(connection, row.id, row.attempt, row.seq, "claimed", told)
            may_go_on = row.attempt > 1 or row.inherits_id is not None
            return Claim(
                job_id=row.id,
                attempt=row.attempt,
                config=row.config,
                resolved=row.resolved,
                data_fingerprint=row.data_fingerprint,
                log_name=row.log_name,
                claimed_at=now,
                runtime_s=row.runtime_s,
                checkpoint=newest_checkpoint(connection, row) if may_go_on else None,
                init_from=_init_from(connection, row),
            )

    def set_aside(self, job_id: str, attempt: int, reason: Reason) -> None:
        """End a running job that nothing else can be done with: its row, and nothing beside it.

        Its dependents are found by whoever looks next. Raises LostJob.
        """
        with self.database.writing() as connection:
            row = connection.execute(
                sa.select(*(job.c[name] for name in OF_MOVE)).where(held(job_id, attempt)).with_for_update()
            ).one_or_none()
            if row is None:
                raise LostJob(job_id)
            ended = {"finished_at": self.now(), "run_after": None}
            self._move(connection, row, ENDINGS[reason.code], "finished", reason, **ended)

    def name_log(self, job_id: str, attempt: int, log_name: str) -> None:
        """Say which log the job writes to, once, at its first claim. Raises LostJob."""
        self.record(job_id, attempt, Facts(progress={"log_name": log_name}))

    def record(self, job_id: str, attempt: int, facts: Facts) -> Order | None:
        """Write what an attempt reported, heartbeat and lease included. Returns what is asked of it.

        A checkpoint resets the count of crashes. Raises LostJob, having changed nothing, when the attempt no
        longer owns the job.
        """
        with self.database.writing("record") as connection:
            row = self._write(connection, job_id, attempt, facts)
            if row.status != Status.RUNNING:
                raise LostJob(job_id)
            if row.cancel_requested_at is not None:
                return "cancel"
            if row.pause_requested_at is not None:
                return "pause"
            is_preempting = connection.execute(sa.select(gate.c.is_preempting)).scalar_one()
            return "preempt" if is_preempting else None

    # The verbs that end an attempt.

    def finish(
        self, job_id: str, attempt: int, reason: Reason, facts: Facts = NOTHING, tell: Tell = _nobody
    ) -> Status:
        """End a running job for good, its last facts in the same transaction. Raises LostJob."""
        with self._ending("finish", job_id) as connection:
            row = self._write(connection, job_id, attempt, facts)
            if _runs(row):
                self._finish(connection, row, reason)
            return self._told(connection, job_id, tell)

    def release(
        self,
        job_id: str,
        attempt: int,
        reason: Reason,
        facts: Facts = NOTHING,
        tell: Tell = _nobody,
        *,
        again_in_s: float = 0.0,
    ) -> Status:
        """Put a running job back: a graceful stop, which costs no crash. Raises LostJob.

        What the user has asked for meanwhile wins. again_in_s: not to be claimed before, as for `gpu_busy`.
        """
        with self._ending("release", job_id) as connection:
            row = self._write(connection, job_id, attempt, facts)
            run_after = self.now() + timedelta(seconds=again_in_s) if again_in_s else None
            if _runs(row) and not self._as_asked(connection, row):
                self._requeue(connection, row, reason, "released", run_after)
            return self._told(connection, job_id, tell)

    def suspend(
        self,
        job_id: str,
        attempt: int,
        reason: Reason = PAUSED,
        facts: Facts = NOTHING,
        tell: Tell = _nobody,
    ) -> Status:
        """Pause a running job: the user's wish, or `disk_full`. A graceful stop, too. Raises LostJob.

        A wish taken back meanwhile puts the job back into the queue.
        """
        with self._ending("suspend", job_id) as connection:
            row = self._write(connection, job_id, attempt, facts)
            if _runs(row) and not self._as_asked(connection, row):
                if reason.code == PAUSED.code:
                    back = Reason("preempted", "The pause was taken back; the job goes on.")
                    self._requeue(connection, row, back, "released")
                else:
                    self._pause(connection, row, reason)
            return self._told(connection, job_id, tell)

    def crash(
        self, job_id: str, attempt: int, reason: Reason, facts: Facts = NOTHING, tell: Tell = _nobody
    ) -> Status:
        """Record an attempt that died: queue it again while the budget lasts, else fail it. Raises LostJob.

        An attempt that has committed a checkpoint costs nothing of the budget.
        reason: what killed it; a code the budget ends with, such as native_crash, stays, others become
        crash_loop.
        """
        with self._ending("crash", job_id) as connection:
            row = self._write(connection, job_id, attempt, facts)
            if _runs(row):
                self._crash(connection, row, reason)
            return self._told(connection, job_id, tell)

    def rescue(self, host: str) -> Sequence[tuple[str, Status]]:
        """Take the jobs of other hosts whose lease is over; return what became of each.

        On the same host nobody waits for a lease: there `orphans` and the owner's identity tell.
        """
        with self.database.writing("rescue") as connection:
            late = connection.execute(
                sa.select(job)
                .where(
                    job.c.status == Status.RUNNING,
                    job.c.lease_until < server_time(connection.dialect.name),
                )
                .where(job.c.owner["host"].as_string() != host)
                .order_by(job.c.id)
                .with_for_update(skip_locked=True),
                {"now": self.now()},
            ).all()
            became = [(row.id, self._crash(connection, row, _silent(row))) for row in late]
        for job_id, _ in became:
            self._cancel_the_rest(job_id)
        return became

    # ---- behind the verbs ----

    def _told(self, connection: sa.Connection, job_id: str, tell: Tell) -> Status:
        row = self._get(connection, job_id)
        tell(Status(row.status), row.reason_code)
        return Status(row.status)

    def _crash(self, connection: sa.Connection, row: Row, reason: Reason) -> Status:
        saved = newest_checkpoint(connection, row)
        has_progress = saved is not None and (saved.job_id, saved.attempt) == (row.id, row.attempt)
        crashes = 0 if has_progress else row.crashes + 1
        told = {"code": reason.code, "message": reason.message, "crashes": crashes}
        self._note(connection, row.id, [("crashed", told)], crashes=crashes)
        if row.cancel_requested_at is not None:
            return self._cancel(connection, row)
        if crashes >= row.max_attempts:
            code = reason.code if reason.code in _NAMED_CRASHES else "crash_loop"
            message = f"{reason.message} That was crash {crashes} of {row.max_attempts} in a row."
            return self._finish(connection, row, Reason(code, message, reason.hint))
        backoff_s = BACKOFF_S[max(0, min(crashes, len(BACKOFF_S)) - 1)]
        return self._as_asked(connection, row) or self._requeue(
            connection,
            row,
            Reason("backoff", reason.message, reason.hint),
            "requeued",
            self.now() + timedelta(seconds=backoff_s),
        )

    def _as_asked(self, connection: sa.Connection, row: Row) -> Status | None:
        """Do with a job that stops what its user has asked for; null when nothing was."""
        if row.cancel_requested_at is not None:
            return self._cancel(connection, row)
        return None if row.pause_requested_at is None else self._pause(connection, row)

    def _write(self, connection: sa.Connection, job_id: str, attempt: int, facts: Facts) -> Row:
        """Write facts of an attempt that owns its job; return the job's row.

        A flush that is there already is not written again: then the row is as it is by now, and no longer
        `running` if the flush had ended the attempt. Raises LostJob.
        """
        now = self.now()
        epochs = [_as_best(row, facts.progress or {}) for row in facts.epochs]
        checkpoints = [{**row, "attempt": attempt, "created_at": now} for row in facts.checkpoints]
        tables: tuple[tuple[sa.Table, Sequence[Mapping[str, Any]]], ...] = (
            (batch_row, facts.batches),
            (epoch_row, epochs),
            (system_row, facts.systems),
            (checkpoint, checkpoints),
        )
        count = len(facts.events) + sum(len(rows) for _, rows in tables)
        changes = {"heartbeat_at": now, **(facts.progress or {}), **_new_best(epochs)}
        if checkpoints:
            changes["crashes"] = 0
        token = {"of_id": job_id, "of_attempt": attempt, "of_flush": facts.flush, "count": count, "now": now}
        holding = _holding(connection.dialect.name)
        row = connection.execute(holding, {**token, **changes}).one_or_none()
        if row is None:
            return _written(connection, job_id, attempt, facts.flush)
        numbers = iter(range(row.seq - count + 1, row.seq + 1))
        for table, rows in tables:
            if rows:
                connection.execute(table.insert(), list(_numbered(rows, job_id, numbers)))
        for (kind, data), seq in zip(facts.events, numbers, strict=True):
            self._append(connection, job_id, attempt, seq, kind, data)
        if row.is_promoted and "best_file" in changes:
            self._crown(connection)
        return row


def _due() -> sa.Select[Any]:
    """Select the job whose turn it is `now`."""
    candidate, needed, now = _CANDIDATE, _NEEDED, sa.bindparam("now", type_=UtcTime)
    # A job that has begun goes on where it began: on one device its numbers are the same.
    device = sa.func.coalesce(
        candidate.c.resolved["device"].as_string(),
        candidate.c.config["device"].as_string(),
        "auto",  # of a config that cannot be read: anybody's to end
    )
    waits = (
        sa.exists()
        .where(dependency.c.job_id == candidate.c.id, needed.c.id == dependency.c.needs_id)
        .where(needed.c.status != Status.SUCCEEDED)
    )
    return (
        sa.select(candidate.c.id)
        .where(
            candidate.c.status == Status.QUEUED,
            candidate.c.run_after.is_(None)
            | (candidate.c.run_after <= now)
            | (candidate.c.run_after > later(now, LONGEST_WAIT_S)),
            candidate.c.not_before.is_(None) | (candidate.c.not_before <= now),
            ~waits,
            device.not_in(sa.bindparam("not_on", expanding=True)),
            sa.select(gate.c.drained_at).scalar_subquery().is_(None),
        )
        .order_by(*in_turn(candidate))
        .limit(1)
    )


# Statements are made once: that costs more than to execute them. The columns that change are those they are
# executed with, beside what these say.
_DUE = _due()


@cache
def _claiming(dialect: str) -> ReturningUpdate[Any]:
    """Take the job whose turn it is."""
    # PostgreSQL skips rows another claim holds; SQLite has one writer, and no such clause.
    chosen = _DUE.with_for_update(skip_locked=True, of=_CANDIDATE).scalar_subquery()
    return (
        job.update()
        .where(job.c.id == chosen, job.c.status == Status.QUEUED)
        .values(
            attempt=job.c.attempt + 1,
            seq=job.c.seq + 1,
            started_at=sa.func.coalesce(job.c.started_at, sa.bindparam("now", type_=UtcTime)),
            lease_until=server_time(dialect, plus_s=LEASE_S),
        )
        .returning(*job.c)
    )


@cache
def _holding(dialect: str) -> ReturningUpdate[Any]:
    """Change a job that an attempt still owns, and extend its lease."""
    flush = sa.bindparam("of_flush", type_=sa.BigInteger)
    return (
        job.update()
        # The one before it must be there: a database that went back in time has lost rows of this attempt.
        .where(
            held(sa.bindparam("of_id"), sa.bindparam("of_attempt")),
            flush.is_(None) | (job.c.flush == flush - 1),
        )
        .values(
            seq=job.c.seq + sa.bindparam("count"),
            flush=sa.func.coalesce(flush, job.c.flush),
            lease_until=server_time(dialect, plus_s=LEASE_S),
        )
        .returning(*job.c)
    )


def _written(connection: sa.Connection, job_id: str, attempt: int, flush: int | None) -> Row:
    """Find the job as a flush whose answer was lost has left it. Raises LostJob when it did not get there."""
    row = connection.execute(
        sa.select(job).where(job.c.id == job_id, job.c.attempt == attempt, job.c.flush == flush)
    ).one_or_none()
    if flush is None or row is None:
        raise LostJob(job_id)
    return row


def _runs(row: Row) -> bool:
    """Whether an attempt has not ended already."""
    return bool(row.status == Status.RUNNING)


def _numbered(
    rows: Sequence[Mapping[str, Any]], job_id: str, numbers: Iterator[int]
) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {**row, "job_id": job_id, "seq": next(numbers)}


def _as_best(row: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, Any]:
    """Add to the row of an epoch what is asked of a best; its file, where only the job's columns name it."""
    file = {name: row.get(name) for name in _BEST_FILE}
    if row["best"] and file["best_file"] is None and progress.get("best_epoch") == row["epoch"]:
        file = {name: progress.get(name) for name in _BEST_FILE}
    return {**row, **file, "margins": asdict(Margins.of(row["confusion"])) if row["best"] else None}


def _new_best(epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bests = [row for row in epochs if row["best"] and row["best_file"] is not None]
    if not bests:
        return {}
    last = bests[-1]
    named = {"best_epoch": "epoch", "best_val_loss": "val_loss", "best_val_accuracy": "val_accuracy"}
    return {name: last[column] for name, column in named.items()} | {name: last[name] for name in _BEST_FILE}


def _init_from(connection: sa.Connection, row: Row) -> Weights | None:
    source_id = _within(row.config, "init_from")
    if source_id is None:
        return None
    found = connection.execute(
        sa.select(job.c.id, job.c.best_file, job.c.best_sha256, job.c.config).where(
            job.c.id == source_id, job.c.best_file.is_not(None)
        )
    ).one_or_none()
    if found is None:
        return None
    is_normalized = _within(found.config, "data", "normalize") not in (None, "none")
    return Weights(found.id, found.best_file, found.best_sha256, is_normalized)


def _within(config: Any, *path: str) -> Any:
    """Read a field of a stored config, whatever became of it: to refuse one is not the claim's part."""
    for name in path:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _silent(row: Row) -> Reason:
    return Reason(
        "internal", f"The worker on {row.owner['host']} has not been heard of for {LEASE_S:g} seconds."
    )
