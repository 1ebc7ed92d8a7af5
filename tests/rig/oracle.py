"""The numbers of a job that no disturbance may change, and the job they are asked of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
    final_weights: str


def numbers(queue: Queue, root: Path, job_id: str) -> Numbers:
    """Read what a job has come to."""
    row = queue.get(job_id)
    with queue.database.reading() as connection:
        found = since(connection, job_id)
    return Numbers(
        row.status,
        row.reason_code,
        (row.best_epoch, row.best_val_loss, row.best_val_accuracy, row.best_sha256),
        {name: found.batches[name] for name in BATCH_COLUMNS if name not in NOT_NUMERIC},
        [{key: value for key, value in epoch.items() if key not in NOT_NUMERIC} for epoch in found.epochs],
        _final_weights(queue, root, job_id),
    )


def _final_weights(queue: Queue, root: Path, job_id: str) -> str:
    """Hash the weights, the average and the optimizer of the last checkpoint; its times differ."""
    last = queue.checkpoints(job_id)[0]
    path = root / "data" / "jobs" / job_id / last.name
    state = torch.load(path, weights_only=True)
    digest = hashlib.sha256(f"{last.epoch} {last.batch} {last.step} {last.is_epoch_trained}".encode())
    for tensor in _tensors([state["weights"], state["average"], state["optimizer"]]):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def assert_same(found: Numbers, whole: Numbers, what: str) -> None:
    """Compare a disturbed job with the undisturbed one, and name what differs."""
    for name in Numbers.__dataclass_fields__:
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert ours == theirs, f"{what}: {name} differs\n{ours}\n{theirs}"
