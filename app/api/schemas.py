"""What the answers look like, for the API reference. Tests hold them to what views.py renders."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.jobs.states import Status


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Reason(Answer):
    code: str | None
    message: str | None
    hint: str | None


class Place(Answer):
    position: int | None
    """From 1; null when the job does not wait."""
    eta_start: datetime | None


class Progress(Answer):
    epoch: int | None
    epochs: int | None
    batch: int | None
    """Nominal micro-batch in its epoch, from 0, as last reported; `batches` once all of them are trained."""
    batches: int | None
    percent: float
    samples_per_s: float | None
    """Training only."""
    eta_s: float | None


class Baseline(Answer):
    """What is reached without a model, on the split that was judged; all null when it is not known."""

    baseline_class: str | None
    """The class most frequent in training."""
    baseline_macro_f1: float | None
    """Of always answering that class."""
    baseline_loss: float | None
    """Of the constant probabilities that are best in training; null for a loss that is no cross-entropy."""


class Best(Baseline):
    epoch: int
    val_loss: float | None
    val_accuracy: float | None
    macro_f1: float | None
    mcc: float | None


class Test(Baseline):
    loss: float | None
    accuracy: float | None
    macro_f1: float | None
    mcc: float | None
    confusion: list[list[int]]


class Warned(Answer):
    code: str
    message: str


class JobSummary(Answer):
    id: str
    name: str | None
    tags: list[str]
    metadata: dict[str, str]
    status: Status
    phase: str | None
    """While running: preparing, training, validating, saving."""
    reason: Reason
    priority: int
    attempt: int
    crashes: int
    queue: Place
    champion: bool
    """Of its comparison key: the promoted job, or the best of those that have ended."""
    progress: Progress
    best: Best | None
    test: Test | None
    config_hash: str
    data_fingerprint: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parent_id: str | None
    links: dict[str, str]


class Job(JobSummary):
    config: dict[str, Any]
    """The body as validated, with defaults."""
    resolved: dict[str, Any] | None
    """What every null and auto became; null before the first attempt."""
    warnings: list[Warned]


class JobPage(Answer):
    data: list[Job]
    has_more: bool
    next_after: str | None


class Champion(Answer):
    comparison_key: str
    """Equal for jobs whose validation losses are comparable."""
    promoted: bool
    behind_file: bool
    """Whether `saimp_best.pth` in the data root is its best."""
    job: JobSummary


class ChampionPage(Answer):
    data: list[Champion]
    has_more: bool
    next_after: str | None


class Part(Answer):
    rows: int
    windows: int
    start: datetime | None
    end: datetime | None
    class_counts: list[int]
    dropped: dict[str, int | None]


class PlannedModel(Answer):
    parameters: int | None
    flops_per_sample: int | None


class PlannedTraining(Answer):
    effective_batch: int
    steps_per_epoch: int | None
    seconds_per_epoch: float | None
    memory_bytes: int | None


class PlannedLabels(Answer):
    ahead_median_s: float | None
    """From a row to its label_end; null without one."""
    ahead_max_s: float | None
    independent: dict[str, float | None]
    """How many labels the overlapping ones of a split are worth; null when nothing says how far they look."""


class Plan(Answer):
    config: dict[str, Any]
    warnings: list[Warned]
    classes: list[str] | None
    """Null, as splits and dropped, when the data checks ran out of time."""
    model: PlannedModel
    splits: dict[str, Part | None] | None
    dropped: dict[str, int | None] | None
    labels: PlannedLabels | None
    training: PlannedTraining


class Epoch(Answer):
    epoch: int
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    best: bool
    lr: float | None
    duration_s: float | None
    samples_per_s: float | None
    macro_f1: float | None
    balanced_accuracy: float | None
    mcc: float | None
    ece: float | None
    per_class: dict[str, Any]
    confusion: list[list[int]]
    """Rows are labels, columns predictions."""
    ram_peak: int | None
    vram_peak: int | None
    skipped_steps: int


class Batches(Answer):
    step: list[int]
    epoch: list[int]
    batch: list[int]
    loss: list[float | None]
    accuracy: list[float | None]
    lr: list[float | None]
    grad_norm: list[float | None]
    time: list[datetime]


class System(Answer):
    time: list[datetime]
    ram_used: list[int | None]
    ram_total: list[int | None]
    process_rss: list[int | None]
    cpu_percent: list[float | None]
    vram_used: list[int | None]
    vram_total: list[int | None]
    vram_process: list[int | None]
    vram_torch_peak: list[int | None]
    gpu_percent: list[float | None]
    gpu_temperature: list[float | None]


class Position(Answer):
    epoch: int
    batch: int


class Metrics(Answer):
    job_id: str
    status: Status
    epochs: list[Epoch]
    batches: Batches
    system: System
    rewinds: list[Position]
    """Drop what you have beyond these positions before you add these rows."""
    next_after: str
    has_more: bool


class Event(Answer):
    seq: int
    time: datetime
    kind: str
    attempt: int
    data: dict[str, Any]


class EventPage(Answer):
    data: list[Event]
    has_more: bool
    next_after: int


class Worker(Answer):
    slot: str
    host: str | None
    pid: int | None
    is_alive: bool
    job_id: str | None
    machine: dict[str, Any]
    started_at: datetime
    heartbeat_at: datetime


class WorkerPage(Answer):
    data: list[Worker]


class Waiting(Answer):
    id: str
    name: str | None
    status: Status
    priority: int
    position: int | None
    eta_start: datetime | None
    reason: Reason
    created_at: datetime


class Line(Answer):
    data: list[Waiting]
    has_more: bool
    next_after: str | None
    drained_at: datetime | None
    """Since when no job is started; null = the queue is open."""


class Health(Answer):
    status: str


class Version(Answer):
    version: str
    schema_: str = Field(alias="schema")
    python: str


class Service(Answer):
    name: str
    version: str
    links: dict[str, str]


class LogHits(Answer):
    data: list[dict[str, Any]]
    """{offset, text} of each line."""
    has_more: bool
    next_offset: int


class DatasetEntry(Answer):
    path: str
    kind: str
    """file or folder."""
    files: int
    size_bytes: int


class DatasetPage(Answer):
    data: list[DatasetEntry]
    warnings: list[dict[str, str]]
    """Buckets that could not be listed, and whether time ran out."""


class Artifact(Answer):
    name: str
    size: int
    sha256: str


class Artifacts(Answer):
    data: list[Artifact]
