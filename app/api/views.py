"""Render jobs, events, workers: rows in, the contract's objects out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from app.db import Damaged
from app.jobs.config import TrainingConfig
from app.jobs.eta import starts
from app.jobs.queue import Queue
from app.jobs.scores import Margins, constant_loss, majority_baseline, most_frequent, scores
from app.jobs.states import Status

Row = sa.Row[Any]
WORKER_LATE_S = 15.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the waiting jobs stand, as of one moment."""

    now: datetime
    places: Mapping[str, int]  # from 1
    unmet: Mapping[str, Sequence[str]]  # dependencies that have not succeeded
    starts: Mapping[str, datetime]  # as far as can be told
    drained_at: datetime | None  # null: the queue is open
    besides_s: Mapping[str, float]  # of running jobs: what an epoch takes besides training
    champions: frozenset[str]  # of the comparison keys of jobs that have ended
    margins: Mapping[str, Margins] = field(default_factory=dict)  # of the validation of the best epochs


def standing(queue: Queue, rows: Sequence[Row]) -> Standing:
    """Look up what it takes to render these jobs."""
    with_best = [row.id for row in rows if row.best_epoch is not None]
    return replace(turns(queue, rows), margins=queue.best_margins(with_best))


def turns(queue: Queue, rows: Sequence[Row]) -> Standing:
    """Look up what the rows that are queued wait for."""
    now = queue.now()
    besides_s = {row.id: _besides_s(queue, row) for row in rows if row.status == Status.RUNNING}
    ended = [row for row in rows if Status(row.status).is_final]
    champions = queue.champion_ids({row.comparison_key for row in ended if row.comparison_key is not None})
    if all(row.status != Status.QUEUED for row in rows):
        return Standing(now, {}, {}, {}, None, besides_s, champions)
    line, unmet, drained_at = queue.line(), queue.waiting(), queue.drained_at()
    places = {row.id: place for place, row in enumerate(line, 1)}
    soon = {} if drained_at else starts(line, _free_at(queue, now), queue.speeds(), skipped=unmet)
    return Standing(now, places, unmet, soon, drained_at, besides_s, champions)


def _free_at(queue: Queue, now: datetime) -> list[datetime | None]:
    """Say when each slot gets free; null where nothing is measured yet."""
    running, _ = queue.page(statuses=[Status.RUNNING])
    etas = {row.slot: progress(row, _besides_s(queue, row))["eta_s"] for row in running}
    idle = [row.slot for row in queue.workers() if is_alive(row, now) and row.slot not in etas]
    busy = [None if eta_s is None else now + timedelta(seconds=eta_s) for eta_s in etas.values()]
    return [*(now for _ in idle), *busy]


_LONG = ("config", "resolved", "warnings")


def summary(row: Row, where: Standing) -> dict[str, Any]:
    """Render a job without what is long."""
    return {name: value for name, value in job(row, where).items() if name not in _LONG}


# What a job's JSON columns hold, and what stands for one that cannot be read.
_JSON: Mapping[str, tuple[type, Any]] = {
    "tags": (list, []),
    "metadata": (dict, {}),
    "config": (dict, {}),
    "warnings": (list, []),
    "resolved": (dict, None),
    "plan": (dict, None),
    "test": (dict, None),
}


def job(row: Row, where: Standing) -> dict[str, Any]:
    """Render a job as the contract's Job.

    A row that is damaged is rendered, too, with what can be read of it and a warning: left out, it could be
    neither found nor deleted.
    """
    unread: list[str] = []

    def column(name: str) -> Any:
        value, (kind, empty) = getattr(row, name), _JSON[name]
        if (isinstance(value, kind) and not isinstance(value, Damaged)) or (value is None and empty is None):
            return value
        unread.append(name)
        return empty

    def derived(name: str, render: Callable[[], Any]) -> Any:
        try:
            return render()
        except Exception:  # whatever a damaged row holds
            unread.append(name)
            return None

    found = {
        "id": row.id,
        "name": row.name,
        "tags": column("tags"),
        "metadata": column("metadata"),
        "status": row.status,
        "phase": row.phase,
        "reason": reason(row, where),
        "priority": row.priority,
        "attempt": row.attempt,
        "crashes": row.crashes,
        "queue": place(row, where),
        "champion": (row.is_promoted and row.best_file is not None) or row.id in where.champions,
        "progress": progress(row, where.besides_s.get(row.id, 0.0)),
        "best": derived("best", lambda: best(row, where.margins.get(row.id))),
        "test": derived("test", lambda: test(row)),
        "config": column("config"),
        "resolved": column("resolved"),
        "config_hash": row.config_hash,
        "data_fingerprint": row.data_fingerprint,
        "warnings": column("warnings"),
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "parent_id": row.parent_id,
        "links": links(row.id),
    }
    column("plan")
    if unread:
        named = ", ".join(dict.fromkeys(unread))
        message = f"The row of this job is damaged; what cannot be read is left empty: {named}."
        found["warnings"] = [*found["warnings"], {"code": "row_damaged", "message": message}]
    return found


def reason(row: Row, where: Standing) -> dict[str, str | None]:
    """Say why a job is where it is."""
    code, message, hint = row.reason_code, row.reason_message, row.reason_hint
    if row.status == Status.QUEUED:
        code, message, hint = _queued_reason(row, where)
    elif row.status == Status.RUNNING:
        code, message, hint = "none", _asked(row), None
    return {"code": code, "message": message, "hint": hint}


def _queued_reason(row: Row, where: Standing) -> tuple[str, str | None, str | None]:
    if unmet := where.unmet.get(row.id):
        listed = ", ".join(unmet[:3]) + (f" and {len(unmet) - 3} more" if len(unmet) > 3 else "")
        return "waiting_for_dependency", f"Waits until {listed} has succeeded.", None
    if row.not_before is not None and row.not_before > where.now:
        return "not_before", "Waits for its not_before time.", None
    if row.reason_code == "preempted":
        return row.reason_code, row.reason_message, row.reason_hint
    if where.drained_at is not None:
        return "draining", "The queue is drained: no job is started.", "POST /queue/open opens it again."
    if row.run_after is not None and row.run_after > where.now:
        return row.reason_code, row.reason_message, row.reason_hint  # backoff, gpu_busy
    return "none", None, None


def _asked(row: Row) -> str | None:
    """Say what a running job's worker has been asked to do."""
    if row.cancel_requested_at is not None:
        return "Asked to cancel; the worker obeys within seconds."
    if row.pause_requested_at is not None:
        return "Asked to pause; the worker saves and obeys."
    return None


def place(row: Row, where: Standing) -> dict[str, Any]:
    """Say where a job stands in the queue, and when it may start; null when it does not wait."""
    position = where.places.get(row.id) if row.status == Status.QUEUED else None
    return {"position": position, "eta_start": where.starts.get(row.id) if position else None}


def progress(row: Row, besides_s: float = 0.0) -> dict[str, Any]:
    """Say how far a job is. besides_s: what its last epoch took for validating and saving."""
    done = 0.0
    if row.epoch and row.epochs:
        part = min(1.0, (row.batch or 0) / row.batches) if row.batches else 0.0
        done = min(1.0, (row.epoch - 1 + part) / row.epochs)
    eta_s = None
    nominal = _nominal_batch(row)
    if row.status == Status.RUNNING and row.samples_per_s and row.epochs and row.batches and nominal:
        training_s = row.batches * nominal / row.samples_per_s
        epochs_to_end = row.epochs - (row.epoch or 1) + 1
        eta_s = round((1 - done) * row.epochs * training_s + epochs_to_end * besides_s, 1)
    return {
        "epoch": row.epoch,
        "epochs": row.epochs,
        "batch": row.batch,
        "batches": row.batches,
        "percent": 100.0 if row.status == Status.SUCCEEDED else round(100 * done, 2),
        "samples_per_s": row.samples_per_s,
        "eta_s": eta_s,
    }


def _besides_s(queue: Queue, row: Row) -> float:
    """Measure what the last epoch took besides training; 0 before there is one."""
    last = queue.newest_epoch(row.id) if row.batches else None
    nominal = _nominal_batch(row)
    if last is None or not last.duration_s or not last.samples_per_s or nominal is None:
        return 0.0
    return float(max(0.0, last.duration_s - row.batches * nominal / last.samples_per_s))


def _nominal_batch(row: Row) -> int | None:
    """Read the nominal micro-batch of a job; null when its config cannot be read."""
    with suppress(KeyError, TypeError, AttributeError):
        return TrainingConfig.model_construct(**row.config["training"]).nominal_batch
    return None


def best(row: Row, margins: Margins | None) -> dict[str, Any] | None:
    """Name the best epoch so far. margins: of its validation, when they are known."""
    if row.best_epoch is None:
        return None
    found = scores(margins) if margins else {}
    return {
        "epoch": row.best_epoch,
        "val_loss": row.best_val_loss,
        "val_accuracy": row.best_val_accuracy,
        "macro_f1": found.get("macro_f1"),
        "mcc": found.get("mcc"),
        **_baselines(row, margins),
    }


def test(row: Row) -> dict[str, Any] | None:
    """Give the scores on the test split, once it was evaluated."""
    if row.test is None:
        return None
    confusion = row.test["confusion"]
    margins = Margins.of(confusion)
    found = scores(margins)
    return {
        "loss": row.test["loss"],
        "accuracy": row.test["accuracy"],
        "macro_f1": found["macro_f1"],
        "mcc": found["mcc"],
        "confusion": confusion,
        **_baselines(row, margins),
    }


def _baselines(row: Row, margins: Margins | None) -> dict[str, Any]:
    """Say what is reached without a model on the split that was judged; null when it is not known."""
    splits, resolved = (row.plan or {}).get("splits"), row.resolved
    if not (margins and splits and resolved):
        return {"baseline_class": None, "baseline_macro_f1": None, "baseline_loss": None}
    support, train_counts = margins.support, splits["train"]["class_counts"]
    majority = majority_baseline(support, most_frequent(train_counts), resolved.get("classes"))
    return {
        "baseline_class": majority["class"],
        "baseline_macro_f1": majority["macro_f1"],
        "baseline_loss": constant_loss(
            support, train_counts, row.config["loss"], resolved.get("class_weights")
        ),
    }


def links(job_id: str) -> dict[str, str]:
    """List the addresses that belong to a job."""
    home = f"/jobs/{job_id}"
    below = ("metrics", "events", "logs", "plot", "checkpoint")
    return {"self": home, **{name: f"{home}/{name}" for name in below}}


def event(row: Row) -> dict[str, Any]:
    """Render a line of a job's history."""
    return {"seq": row.seq, "time": row.time, "kind": row.kind, "attempt": row.attempt, "data": row.data}


def worker(row: Row, jobs: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """Render a worker; `jobs` names the job each slot runs."""
    return {
        "slot": row.slot,
        "host": row.owner.get("host"),
        "pid": row.owner.get("pid"),
        "is_alive": is_alive(row, now),
        "job_id": jobs.get(row.slot),
        "machine": row.machine,
        "started_at": row.started_at,
        "heartbeat_at": row.heartbeat_at,
    }


def is_alive(row: Row, now: datetime) -> bool:
    """Whether a worker's heartbeat is recent."""
    return bool((now - row.heartbeat_at).total_seconds() < WORKER_LATE_S)


def line(queue: Queue, limit: int = 200, after: LinePlace | None = None) -> dict[str, Any]:
    """Render the queue: who waits, in the order of their turn, and whether any is started at all.

    after: the place behind which to begin, of a job that may have left meanwhile.
    """
    rows = queue.line()
    where = turns(queue, rows)
    drained_at = queue.drained_at() if where.drained_at is None else where.drained_at
    behind = [row for row in rows if after is None or _turn(LinePlace.of(row)) > _turn(after)]
    page = behind[:limit]
    has_more = len(behind) > limit
    return {
        "data": [waiting(row, where) for row in page],
        "has_more": has_more,
        "next_after": LinePlace.of(page[-1]).cursor() if has_more else None,
        "drained_at": drained_at,
    }


class LinePlace(NamedTuple):
    """A place in the queue."""

    priority: int
    place: int
    id: str

    @classmethod
    def of(cls, row: Row) -> LinePlace:
        return cls(row.priority, row.place, row.id)

    def cursor(self) -> str:
        return f"{self.priority}.{self.place}.{self.id}"

    @classmethod
    def read(cls, cursor: str) -> LinePlace:
        priority, place, job_id = cursor.split(".")
        return cls(int(priority), int(place), job_id)


def _turn(at: LinePlace) -> tuple[int, int, str]:
    return -at.priority, -at.place, at.id


def waiting(row: Row, where: Standing) -> dict[str, Any]:
    """Render a place in the queue."""
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "priority": row.priority,
        **place(row, where),
        "reason": reason(row, where),
        "created_at": row.created_at,
    }
