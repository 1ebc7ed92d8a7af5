"""The queue. Each verb is one transaction.

A change of status is one guarded UPDATE with its event row in the same transaction (`door`). Whatever a
worker writes carries the attempt it holds; zero rows changed means the job is no longer its own.

Order: jobs run by priority, higher first; inside equal priority by place, a new job's being the last.
"""

from __future__ import annotations

from app.jobs.queue.orders import Orders
from app.jobs.queue.reading import Reading
from app.jobs.queue.records import (
    CANCELLED,
    NOTHING,
    PAUSED,
    Checkpoint,
    Claim,
    Facts,
    IsChampion,
    JobInUse,
    KeyReuse,
    LostJob,
    NothingToRetry,
    Order,
    Owner,
    QueueFull,
    Reason,
    Row,
    Tell,
    Weights,
)
from app.jobs.queue.resuming import Resuming
from app.jobs.queue.running import BACKOFF_S, LEASE_S, Running
from app.jobs.queue.slots import Slots
from app.jobs.queue.submitting import Submitting


class Queue(Submitting, Orders, Running, Resuming, Slots, Reading):
    """The queue of one database: what users ask for, what workers report, what everybody reads."""


__all__ = [
    "BACKOFF_S",
    "CANCELLED",
    "LEASE_S",
    "NOTHING",
    "PAUSED",
    "Checkpoint",
    "Claim",
    "Facts",
    "IsChampion",
    "JobInUse",
    "KeyReuse",
    "LostJob",
    "NothingToRetry",
    "Order",
    "Owner",
    "Queue",
    "QueueFull",
    "Reason",
    "Row",
    "Tell",
    "Weights",
]
