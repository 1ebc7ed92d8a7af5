"""What goes into the queue's verbs and comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Literal

import sqlalchemy as sa

from app.errors import ServiceError
from app.jobs.states import Status

Row = sa.Row[Any]
Order = Literal["cancel", "pause", "preempt"]
# Is told what becomes of a job, and the reason code, before anybody can read it.
Tell = Callable[[Status, str], None]


class QueueFull(ServiceError):
    """Too many jobs wait already."""

    status, code = 429, "queue_full"
    headers: ClassVar = {"Retry-After": "60"}


class KeyReuse(ServiceError):
    """This Idempotency-Key was used for another body."""

    status, code = 409, "key_reuse"


class JobInUse(ServiceError):
    """Another job still needs this one's files."""

    status, code = 409, "job_in_use"


class NothingToRetry(ServiceError):
    """The job has succeeded: there is nothing left of it to do."""

    status, code = 409, "nothing_to_retry"


class IsChampion(ServiceError):
    """The job is the champion: its best is saimp_best.pth, or it was promoted."""

    status, code = 409, "is_champion"


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
class Checkpoint:
    """A resume checkpoint that counts.

    Its position: rows of `epoch` with a batch below `batch`, and of epochs before it, lie before it. `step`
    optimizer steps were applied. is_epoch_trained: the epoch's validation comes next, else a step.
    name and best_file are below the folder of `job_id`: the job's own, or the one a retry goes on from.
    best_file: the best so far at this position; null = none.
    """

    job_id: str
    seq: int
    attempt: int
    epoch: int
    batch: int
    step: int
    is_epoch_trained: bool
    name: str
    sha256: str
    size: int
    created_at: datetime
    best_file: str | None = None
    best_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """The best of another job, to start from; `file` is below that job's folder.

    is_normalized: whether the model holds a normaliser, which is that job's own.
    """

    job_id: str
    file: str
    sha256: str
    is_normalized: bool


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
    checkpoint: Checkpoint | None = None  # the newest one: where to go on
    init_from: Weights | None = None  # what config.init_from names, as it is now


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job is where it is: a code of the contract, a sentence, what to do."""

    code: str
    message: str | None = None
    hint: str | None = None


CANCELLED = Reason("user", "Cancelled by the user.")
PAUSED = Reason("user", "Paused by the user.")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an attempt reported since the last commit; written in one transaction.

    An epoch that is a best names its file (best_file, best_sha256, best_bytes): the job's best follows.
    checkpoints: epoch, batch, step, is_epoch_trained, name (below the job's folder), sha256, size.
    flush: the number of this transaction, from 1 in its attempt. Facts sent again with the same number are
    written once, however many of the answers were lost. Null: not counted.
    """

    events: Sequence[tuple[str, Mapping[str, Any]]] = ()  # (kind, data)
    batches: Sequence[Mapping[str, Any]] = ()  # columns of batch_row
    epochs: Sequence[Mapping[str, Any]] = ()  # columns of epoch_row
    systems: Sequence[Mapping[str, Any]] = ()  # columns of system_row
    progress: Mapping[str, Any] | None = None  # columns of job
    checkpoints: Sequence[Mapping[str, Any]] = ()  # columns of checkpoint
    flush: int | None = None


NOTHING = Facts()


def plain(text: str | None) -> str | None:
    """Make a text storable anywhere: no NUL, no half of a surrogate pair."""
    if text is None:
        return None
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
