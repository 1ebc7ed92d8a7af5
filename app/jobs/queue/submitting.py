"""How a job comes into the queue: submitted, retried, cloned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.errors import IllegalTransition, InvalidRequest, Problem
from app.jobs.config import JobRequest, canonical, config_hash
from app.jobs.ids import new_id
from app.jobs.later import counted
from app.jobs.queue.door import Door
from app.jobs.queue.records import Checkpoint, KeyReuse, NothingToRetry, QueueFull, Row
from app.jobs.queue.resuming import newest_checkpoint
from app.jobs.states import FINAL, Status
from app.jobs.tables import dependency, gate, job

# More waiting jobs than this are a mistake of a script.
MAX_QUEUED = 10_000
# Room between neighbouring places, so that a move seldom has to make some.
GAP = 2**20

_NEXT_PLACE = gate.update().values(last_place=gate.c.last_place - GAP).returning(gate.c.last_place)
_COUNT_QUEUED = sa.select(sa.func.count()).select_from(job).where(job.c.status == Status.QUEUED)
_INSERT = job.insert().returning(*job.c)


class Submitting(Door):
    def submit(
        self,
        request: JobRequest,
        *,
        data_fingerprint: str | None = None,
        plan: Mapping[str, Any] | None = None,
        warnings: Sequence[Mapping[str, str]] = (),
        idempotency_key: str | None = None,
        parent_id: str | None = None,
        is_retry: bool = False,
    ) -> tuple[Row, bool]:
        """Queue a job and return (its row, whether it is new); a repeated key returns the first job.

        parent_id: the job it was made from. is_retry: it goes on from the newest checkpoint of its parent,
        when config and data agree.
        Raises KeyReuse when the key came with another body, InvalidRequest for impossible dependencies,
        JobNotFound when there is no parent, IllegalTransition to retry a job that has not ended,
        NothingToRetry one that has succeeded.
        """
        with self.database.writing("submit") as connection:
            if idempotency_key is not None:
                first = self._first(connection, idempotency_key, request, parent_id)
                if first is not None:
                    return first, False
            # The gate's row is a lock: whoever comes first through it stands before the next.
            place = connection.execute(_NEXT_PLACE).scalar_one()
            self._refuse_when_full(connection)
            problems = [
                *self._dead_dependencies(connection, request.depends_on, is_locked=True),
                *self._bad_start(connection, request),
            ]
            if problems:
                raise InvalidRequest(problems=problems)
            parent = None if parent_id is None else self._get(connection, parent_id)
            start = self._start(connection, parent, request, data_fingerprint) if is_retry else None
            job_id = new_id()
            columns = {
                "id": job_id,
                **_columns(request),
                "status": Status.QUEUED,
                "place": place,
                "attempt": 0,
                "crashes": 0,
                "warnings": list(warnings),
                "plan": plan,
                "data_fingerprint": data_fingerprint,
                "idempotency_key": idempotency_key,
                "request_hash": request_hash(request, parent_id) if idempotency_key is not None else None,
                "parent_id": parent_id,
                # What was settled once stays: with anything else the bits would differ.
                "resolved": parent.resolved if start and parent else None,
                "inherits_id": start.job_id if start else None,
                "inherits_seq": start.seq if start else None,
                "created_at": self.now(),
                "runtime_s": 0.0,
                "seq": 1,
            }
            row = connection.execute(_INSERT, columns).one()
            for needs_id in dict.fromkeys(request.depends_on):
                connection.execute(dependency.insert().values(job_id=job_id, needs_id=needs_id))
            self._append(connection, job_id, 0, row.seq, "submitted", _origin(parent_id, start))
            return row, True

    def submitted(
        self, request: JobRequest, idempotency_key: str, parent_id: str | None = None
    ) -> Row | None:
        """Find the job a key has made. Raises KeyReuse when the key came with another body."""
        with self.database.reading() as connection:
            return self._first(connection, idempotency_key, request, parent_id)

    def check_retry(self, parent_id: str) -> None:
        """Refuse what `submit` would refuse of a retry that goes on, before anything else is looked at.

        Raises JobNotFound, IllegalTransition, NothingToRetry.
        """
        with self.database.reading() as connection:
            self._check_retry(self._get(connection, parent_id))

    def dead_dependencies(self, needs: Sequence[str]) -> list[Problem]:
        """List the dependencies that can never succeed, or do not exist."""
        with self.database.reading() as connection:
            return self._dead_dependencies(connection, needs)

    def bad_start(self, request: JobRequest) -> list[Problem]:
        """List what is wrong with the job `init_from` names; its weights are for `app.jobs.start_weights`."""
        with self.database.reading() as connection:
            return self._bad_start(connection, request)

    @staticmethod
    def _first(
        connection: sa.Connection, idempotency_key: str, request: JobRequest, parent_id: str | None
    ) -> Row | None:
        first = connection.execute(
            sa.select(job).where(job.c.idempotency_key == idempotency_key)
        ).one_or_none()
        if first is None:
            return None
        if first.request_hash is None:  # of a time before this column
            is_same = counted(first.config) == counted(request.model_dump(mode="json"))
        else:
            is_same = first.request_hash == request_hash(request, parent_id)
        if not is_same:
            raise KeyReuse(hint=f"It made job {first.id}. Use a new key for a new job.")
        return first

    @staticmethod
    def _refuse_when_full(connection: sa.Connection) -> None:
        if connection.execute(_COUNT_QUEUED).scalar_one() >= MAX_QUEUED:
            raise QueueFull(f"{MAX_QUEUED} jobs wait already.", "Cancel some, or submit again later.")

    @staticmethod
    def _dead_dependencies(
        connection: sa.Connection, needs: Sequence[str], *, is_locked: bool = False
    ) -> list[Problem]:
        problems = []
        for place, needs_id in enumerate(needs):
            query = sa.select(job.c.status).where(job.c.id == needs_id)
            if is_locked:  # else it could fail meanwhile, without seeing whom it takes along
                query = query.with_for_update(read=True)
            status = connection.execute(query).scalar_one_or_none()
            pointer = f"/depends_on/{place}"
            if status is None:
                problems.append(Problem(pointer, "job_not_found", "no job has this id"))
            elif status in FINAL and status != Status.SUCCEEDED:
                problems.append(Problem(pointer, "dependency_failed", f"this job has {status}"))
        return problems

    @staticmethod
    def _bad_start(connection: sa.Connection, request: JobRequest) -> list[Problem]:
        if request.init_from is None:
            return []
        source = connection.execute(
            sa.select(job.c.status, job.c.best_file).where(job.c.id == request.init_from)
        ).one_or_none()
        pointer = "/init_from"
        if source is None:
            return [Problem(pointer, "job_not_found", "no job has this id")]
        if source.best_file is None and source.status in FINAL:
            return [
                Problem(pointer, "no_checkpoint", f"this job has {source.status} without a best checkpoint")
            ]
        if source.best_file is None and request.init_from not in request.depends_on:
            hint = "Name it in depends_on too; then it has one when this job starts."
            return [Problem(pointer, "no_checkpoint", "this job has no best checkpoint yet", hint)]
        return []

    @staticmethod
    def _check_retry(parent: Row) -> None:
        if parent.status not in FINAL:
            raise IllegalTransition(
                f"The job is {parent.status}; only a job that has ended can be retried.",
                "Cancel it first, or clone it.",
            )
        if parent.status == Status.SUCCEEDED:
            raise NothingToRetry(
                "The job has succeeded: there is nothing left of it to do.",
                "Clone it to train with another config (POST /jobs/{id}/clone; saimp clone), or train it once"
                " more from zero (POST /jobs/{id}/retry?from=start; saimp retry --from-start).",
            )

    @staticmethod
    def _start(
        connection: sa.Connection, parent: Row | None, request: JobRequest, data_fingerprint: str | None
    ) -> Checkpoint | None:
        """Find where a retry goes on; null = from zero."""
        if parent is None:
            return None
        Submitting._check_retry(parent)
        agrees = (
            parent.config_hash == config_hash(request)
            and parent.data_fingerprint is not None
            and parent.data_fingerprint == data_fingerprint
        )
        return newest_checkpoint(connection, parent) if agrees else None


def request_hash(request: JobRequest, parent_id: str | None) -> str:
    """Name what a user asked for, labels included."""
    body = [counted(request.model_dump(mode="json")), parent_id]
    return hashlib.sha256(canonical(body).encode()).hexdigest()


def _columns(request: JobRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "tags": request.tags,
        "metadata": request.metadata,
        "priority": request.priority,
        "not_before": request.not_before,
        "max_attempts": request.max_attempts,
        "config": request.model_dump(mode="json"),
        "config_hash": config_hash(request),
    }


def _origin(parent_id: str | None, start: Checkpoint | None) -> dict[str, Any]:
    if parent_id is None:
        return {}
    goes_on = None if start is None else {"epoch": start.epoch, "batch": start.batch, "job_id": start.job_id}
    return {"parent_id": parent_id, "goes_on": goes_on}
