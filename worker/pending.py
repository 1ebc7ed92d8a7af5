"""What a runner reported and the database does not know yet: events become rows here.

Kept in memory, however long the database is away: a supervisor that dies takes its runner along, and the job
goes on from its last committed checkpoint, so nothing written elsewhere could ever be used.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.jobs.queue import Facts
from worker.engine.events import (
    BatchDone,
    BestFile,
    CheckpointSaved,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    PhaseChanged,
    Prepared,
    Resumed,
    Tested,
    Warned,
)


@dataclass
class Pending:
    """Rows to commit, in order. folder: the attempt's, below the job's."""

    folder: str
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    systems: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    best: BestFile | None = None  # to publish once it is committed

    def facts(self, flush: int) -> Facts:
        """Hand over everything for one transaction of the attempt, by its number."""
        return Facts(
            self.events,
            self.batches,
            self.epochs,
            self.systems,
            self.progress or None,
            self.checkpoints,
            flush,
        )

    def note(self, kind: str, **data: Any) -> None:
        """Add a line to the job's history."""
        self.events.append((kind, data))

    def take(self, event: Event) -> None:
        """Turn an event into rows; some are worth none."""
        match event:
            case PhaseChanged():
                self.progress["phase"] = event.phase
                if event.batch is not None:
                    self.progress["batch"] = event.batch
            case Prepared():
                self.progress |= {
                    "resolved": event.resolved,
                    "plan": event.plan,
                    "comparison_key": event.comparison_key,
                }
                self.note("prepared")
            case EpochStarted():
                self._at(event.epoch, 0, event.epochs, event.batches)
            case Resumed():
                is_between = event.epoch > 1 and event.batch == 0 and not event.is_epoch_trained
                # There may be no other epoch to come: all are trained, and what goes on is the test.
                at = (event.epoch - 1, event.batches) if is_between else (event.epoch, event.batch)
                self._at(*at, event.epochs, event.batches)
                self.best = event.best
            case BatchDone():
                self.batches.append(_batch_row(event))
                self.progress |= {"epoch": event.epoch, "batch": event.batch}
                self.progress["samples_per_s"] = _finite(event.samples_per_s)
            case EpochDone():
                self._epoch(event)
            case CheckpointSaved():
                self.checkpoints.append(self._checkpoint_row(event))
            case OomRecovered():
                self.note("oom_recovered", **asdict(event), batch_size=event.batch_size)
            case Tested():
                self.progress["test"] = {
                    "loss": _finite(event.loss),
                    "accuracy": _finite(event.accuracy),
                    "confusion": event.confusion,
                }
            case Warned():
                self.note("warning", code=event.code, message=event.message)
            case _:
                pass

    def _at(self, epoch: int, batch: int, epochs: int, batches: int) -> None:
        self.progress |= {"epoch": epoch, "batch": batch, "epochs": epochs, "batches": batches}

    def _epoch(self, event: EpochDone) -> None:
        row = _epoch_row(event)
        self.progress["samples_per_s"] = row["samples_per_s"]
        if event.best is not None:
            self.best = event.best
            row |= {
                "best_file": f"{self.folder}/{event.best.name}",
                "best_sha256": event.best.sha256,
                "best_bytes": event.best.size,
            }
            self.note("best_saved", epoch=event.epoch, val_loss=event.val_loss)
        self.epochs.append(row)

    def _checkpoint_row(self, event: CheckpointSaved) -> dict[str, Any]:
        return {
            "epoch": event.epoch,
            "batch": event.batch,
            "step": event.step,
            "is_epoch_trained": event.is_epoch_trained,
            "name": f"{self.folder}/{event.name}",
            "sha256": event.sha256,
            "size": event.size,
        }


def _batch_row(event: BatchDone) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "batch": event.batch,
        "step": event.step,
        "loss": _finite(event.loss),
        "accuracy": _finite(event.accuracy),
        "lr": event.lr,
        "grad_norm": _finite(event.grad_norm),
        "time": datetime.fromtimestamp(event.time, UTC),
    }


def _epoch_row(event: EpochDone) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "time": datetime.now(UTC),
        "train_loss": _finite(event.train_loss),
        "train_accuracy": _finite(event.train_accuracy),
        "val_loss": _finite(event.val_loss),
        "val_accuracy": _finite(event.val_accuracy),
        "best": event.best is not None,
        "lr": event.lr,
        "duration_s": event.duration_s,
        "samples_per_s": _finite(event.samples_per_s),
        "ece": _finite(event.ece),
        "confusion": event.confusion,
        "ram_peak": event.ram_peak,
        "vram_peak": event.vram_peak,
        "skipped_steps": event.skipped_steps,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
