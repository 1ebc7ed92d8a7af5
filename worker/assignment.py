"""What a runner is given: everything an attempt may depend on. No torch, no database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.datasets.places import Sources
from worker.engine.events import Rung

# A runner that is told to expire has run for too long.
Order = Literal["cancel", "expire", "pause", "preempt"]


@dataclass(frozen=True, slots=True)
class Resume:
    """The resume checkpoint to go on from; the best checkpoint it goes with lies beside it."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class Weights:
    """The best checkpoint of another job, to start from. is_normalized: it holds that job's normaliser."""

    path: Path
    sha256: str
    is_normalized: bool


@dataclass(frozen=True, slots=True)
class Point:
    """An epoch on the curve picture; a value that is not finite is null."""

    epoch: int
    train_loss: float | None
    val_loss: float | None
    train_accuracy: float | None
    val_accuracy: float | None
    is_best: bool


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at one job.

    plans: folder of known plans. resolved: what the first attempt settled; null on the first.
    data_fingerprint: pinned at submit. directory: the attempt's own folder. stream_budget in bytes,
    vram_fraction in 0..1. resume: null = from the start; init_from: weights to start with; rung: where on the
    OOM ladder to start, at the first attempt because of a job like it, later because of the attempt before;
    curve: the epochs that are done; custom_prefixes: modules that custom models may come from; device: the
    slot's, null = the machine's first.
    """

    job_id: str
    attempt: int
    config: dict[str, Any]
    resolved: dict[str, Any] | None
    data_fingerprint: str | None
    sources: Sources
    plans: Path
    directory: Path
    log: Path
    plot: Path
    stream_budget: int
    vram_fraction: float
    resume: Resume | None = None
    init_from: Weights | None = None
    rung: Rung | None = None
    curve: tuple[Point, ...] = ()
    custom_prefixes: tuple[str, ...] = ()
    device: str | None = None
