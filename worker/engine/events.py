"""The facts an attempt reports, and how they cross the pipe. No torch here: the supervisor reads them.

Positions: epoch and step from 1, batch (nominal micro-batch of the epoch) from 0. Memory in bytes, times in
seconds since 1970 (UTC), durations in seconds, accuracy in 0..1.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Phase = Literal["preparing", "training", "validating", "saving"]


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The attempt entered another phase.

    batch: nominal micro-batches of the epoch that are trained by now; null = as the last event had it.
    """

    phase: Phase
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data and device are settled: what every null and auto became, and the plan of the data.

    comparison_key: what validation losses must share to be compared with this job's; null = with none.
    """

    resolved: dict[str, Any]
    plan: dict[str, Any]
    comparison_key: str | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """A micro-batch or an evaluation batch went by; nothing to report. Orders are obeyed here."""


@dataclass(frozen=True, slots=True)
class EpochStarted:
    epoch: int
    epochs: int
    batches: int  # nominal micro-batches in the epoch


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A metric row: every `log_every`-th nominal batch. Contract, section 3, "batches"."""

    epoch: int
    batch: int
    step: int
    loss: float  # weighted mean over the samples since the previous row of the epoch; nan without weight
    accuracy: float
    lr: float | None  # of the last finished step; null before the first
    grad_norm: float | None  # likewise, before clipping
    time: float
    samples_per_s: float | None = None
    ram_used: int | None = None
    ram_total: int | None = None
    vram_used: int | None = None
    vram_total: int | None = None
    vram_torch_peak: int | None = None


@dataclass(frozen=True, slots=True)
class BestFile:
    """A best checkpoint on disk: immutable, named by epoch and content, below the attempt's folder."""

    name: str
    sha256: str
    size: int
    previous_loss: float | None  # of the best before it; null = none
    sidecar: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EpochDone:
    """An epoch was trained and validated; with `best` when its validation loss is the lowest so far."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    confusion: list[list[int]]  # validation, KxK: rows are labels, columns predictions
    train_confusion: list[list[int]]
    ece: float | None
    lr: float
    duration_s: float
    samples_per_s: float
    skipped_steps: int
    ram_peak: int | None
    vram_peak: int | None
    stale_epochs: int  # epochs since the best, for early stopping
    patience: int | None
    best: BestFile | None = None


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A resume checkpoint is on disk, below the attempt's folder. It follows every event up to its position.

    The position: rows of `epoch` with a batch below `batch`, and of epochs before it, lie before it. With
    is_epoch_trained, the epoch's validation is what comes next, else a step. After the last epoch, `epoch` is
    one more than there are.
    """

    name: str
    sha256: str
    size: int
    epoch: int
    batch: int
    step: int  # optimizer steps applied before it
    is_epoch_trained: bool
    best: str | None  # name of the best checkpoint it goes with: needed as long as this one


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on from a resume checkpoint; its position as in CheckpointSaved."""

    name: str
    epoch: int
    batch: int
    step: int
    is_epoch_trained: bool
    epochs: int
    batches: int  # nominal micro-batches in an epoch
    best: BestFile | None  # the best so far, now below this attempt's folder too


@dataclass(frozen=True, slots=True)
class Rung:
    """Where on the OOM ladder a run stands: how much goes through the GPU at once."""

    batch_size: int  # micro-batch
    eval_batch_size: int
    is_sharing: bool  # rows are encoded once for several micro-batches
    is_recomputing: bool  # activation checkpointing


@dataclass(frozen=True, slots=True)
class OomRecovered:
    """Out of GPU memory: what was done is undone and done again smaller.

    during: in the optimizer step nothing can be undone: the attempt ends, the next one starts on the rung.
    """

    epoch: int
    step: int
    rung: Rung  # from here on
    message: str
    during: Literal["training", "evaluation", "the optimizer step"] = "training"

    @property
    def batch_size(self) -> int:
        """What goes through at once from here on, where memory ran out."""
        return self.rung.eval_batch_size if self.during == "evaluation" else self.rung.batch_size


@dataclass(frozen=True, slots=True)
class Tested:
    """The test split, evaluated once with the best weights."""

    loss: float
    accuracy: float
    confusion: list[list[int]]


@dataclass(frozen=True, slots=True)
class Warned:
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The attempt's own verdict.

    stopped: how it left to go on later: the order it obeyed, or of its own accord "pause" and "preempt" for
    disk_full and backoff, "crash" when its process or the source of its data is of no more use; null = it is
    over.
    """

    reason: str  # a reason code of the contract, e.g. "completed"
    message: str
    hint: str | None = None
    stopped: Literal["cancel", "expire", "pause", "preempt", "crash"] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


Event = (
    PhaseChanged
    | Prepared
    | Tick
    | EpochStarted
    | BatchDone
    | EpochDone
    | CheckpointSaved
    | Resumed
    | OomRecovered
    | Tested
    | Warned
    | Ended
)

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        PhaseChanged,
        Prepared,
        Tick,
        EpochStarted,
        BatchDone,
        EpochDone,
        CheckpointSaved,
        Resumed,
        OomRecovered,
        Tested,
        Warned,
        Ended,
    )
}
_NAMES = {kind: [f.name for f in fields(kind)] for kind in _KINDS.values()}


def encode(event: Event) -> bytes:
    """Write one event as JSON; non-finite floats survive."""
    kind = type(event)
    body = {name: getattr(event, name) for name in _NAMES[kind]}
    return json.dumps({"kind": kind.__name__, **body}, default=asdict).encode()


def decode(message: bytes) -> Event:
    """Read one event back. Raises KeyError for a kind this version does not know."""
    body = json.loads(message)
    kind = _KINDS[body.pop("kind")]
    known = {f.name for f in fields(kind)}
    body = {key: value for key, value in body.items() if key in known}
    if kind in (EpochDone, Resumed) and body["best"] is not None:
        body["best"] = BestFile(**body["best"])
    if kind is OomRecovered:
        body["rung"] = Rung(**body["rung"])
    event: Event = kind(**body)
    return event
