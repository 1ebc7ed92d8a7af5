"""The numbers of a job that no disturbance may change, and the job they are asked of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.jobs.metrics import BATCH_COLUMNS, since
from app.jobs.queue import Queue

NOT_NUMERIC = frozenset({"time", "duration_s", "samples_per_s", "ram_peak", "vram_peak", "seq"})

# Small, and the same to the bit whenever and however often it is interrupted.
TINY: dict[str, Any] = {
    "data": {"path": "demo", "window": 4, "horizon_s": 0.0},
    "model": {"name": "mlp", "d_model": 8, "hidden": 8, "dropout": 0.2},
    "training": {"epochs": 4, "threads": 1, "deterministic": True, "log_every": 1, "ema_decay": 0.9},
    "schedule": {"name": "cosine"},
    "early_stopping": {"patience": None},
    "checkpoint": {"every_s": 0, "keep_last": 2},
    "max_attempts": 100,
}
ROWS = 120


@dataclass(frozen=True)
class Numbers:
    """Everything of a job that a kill must not change by a bit."""

    status: str
    reason: str | None
    best: tuple[int, float, float, str]
    batches: dict[str, list[Any]]
    epochs: list[dict[str, Any]]


def numbers(queue: Queue, job_id: str) -> Numbers:
    """Read what a job has come to. Its best are its final weights: the last epoch is the best of this job."""
    row = queue.get(job_id)
    assert row.best_epoch == TINY["training"]["epochs"], row.best_epoch
    with queue.database.reading() as connection:
        found = since(connection, job_id)
    return Numbers(
        row.status,
        row.reason_code,
        (row.best_epoch, row.best_val_loss, row.best_val_accuracy, row.best_sha256),
        {name: found.batches[name] for name in BATCH_COLUMNS if name not in NOT_NUMERIC},
        [{key: value for key, value in epoch.items() if key not in NOT_NUMERIC} for epoch in found.epochs],
    )


def assert_same(found: Numbers, whole: Numbers, what: str) -> None:
    """Compare a disturbed job with the undisturbed one, and name what differs."""
    for name in Numbers.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert ours == theirs, f"{what}: {name} differs\n{ours}\n{theirs}"
