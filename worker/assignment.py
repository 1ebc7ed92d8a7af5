"""What a runner is given: everything an attempt may depend on. No torch, no database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Order = Literal["cancel", "pause", "preempt"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at one job.

    resolved: what the first attempt settled; null on the first. data_fingerprint: pinned at submit.
    directory: the attempt's own folder. stream_budget in bytes, vram_fraction in 0..1.
    """

    job_id: str
    attempt: int
    config: dict[str, Any]
    resolved: dict[str, Any] | None
    data_fingerprint: str | None
    data_root: Path
    directory: Path
    log: Path
    plot: Path
    stream_budget: int
    vram_fraction: float
