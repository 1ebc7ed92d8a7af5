"""The body of a job: every field with its default, bound, unit and meaning.

The names are the contract; sections are frozen, strict and refuse unknown keys.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.jobs.later import counted

MAX_INT = 2**63 - 1


def _printable(text: str) -> str:
    if not text.isprintable() or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise ValueError("must be printable characters: no control, direction or line-break characters")
    return text


# Pydantic alone takes "1893456000" and "2025-11-01" for times too, and cuts what is finer than a microsecond.
# The offset may be missing here: that is an error of its own.
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,6}0*)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)


def _rfc3339(value: Any) -> Any:
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        return value
    code = "invalid_time" if isinstance(value, str) else "time_type"
    raise PydanticCustomError(
        code, "must be a time such as 2025-11-01T00:00:00Z (RFC 3339, to the microsecond)"
    )


def _within_utc(moment: datetime) -> datetime:
    try:
        moment.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError(
            "time_out_of_range", "must lie between the years 1 and 9999 in UTC too"
        ) from error
    return moment


# Not strict, for the split's sake: once its kind was looked for, JSON has become Python, where strictness
# wants a datetime. `_rfc3339` lets nothing else through.
Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_rfc3339), AfterValidator(_within_utc)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Text = Annotated[str, AfterValidator(_printable)]
Column = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}$")]


ClassNames = Annotated[
    list[Annotated[Text, StringConstraints(min_length=1, max_length=64)]],
    Field(min_length=2, max_length=256),
]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class FractionSplit(Section):
    """Fractions of all rows in time order; train and val above 0, the sum 1."""

    train: Fraction = 0.8
    val: Fraction = 0.2
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if self.train <= 0 or self.val <= 0:
            raise ValueError("train and val must both be above 0")
        if abs(self.train + self.val + self.test - 1.0) > 1e-9:
            raise ValueError(
                f"the fractions must sum to 1, they sum to {self.train + self.val + self.test:.10g}"
            )
        return self


class TimeSplit(Section):
    """Cuts at given times: validation from `val_from`, test from `test_from`."""

    val_from: Time
    test_from: Time | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.test_from is not None and self.test_from <= self.val_from:
            raise ValueError("test_from must be later than val_from")
        return self


def _split_kind(value: Any) -> str:
    """Tell the kind of a split; of what is no split at all any will do, for each refuses it."""
    is_times = isinstance(value, TimeSplit) or (
        isinstance(value, dict) and not {"val_from", "test_from"}.isdisjoint(value)
    )
    return "times" if is_times else "fractions"


Split = Annotated[
    Annotated[FractionSplit, Tag("fractions")] | Annotated[TimeSplit, Tag("times")],
    Discriminator(_split_kind),
]


class DataConfig(Section):
    path: Annotated[Text, StringConstraints(min_length=1, max_length=1024)]
    """File, folder or glob below the data root."""
    timestamp: Column = "timestamp"
    """Arrow timestamp (naive = UTC), or integer ns/us/ms/s since 1970 (the unit is detected)."""
    features: Column | Annotated[list[Column], Field(min_length=1, max_length=4096)] | None = None
    """One column's name, or a list of numeric columns; null = "features" if present, else all numeric."""
    shape: Annotated[list[Count], Field(min_length=1, max_length=4)] | None = None
    """Shape of one row's features, e.g. [4, 128]; null = the dataset's metadata, else [F]."""
    label: Column = "label"
    """Integer class 0..K-1."""
    label_end: Column | None = None
    """When the label is known; null = "label_end" if present."""
    horizon_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Seconds the label looks ahead; null = the dataset's metadata, else 0 with a warning."""
    group: Column | None = None
    """Column that separates series, e.g. "symbol"; at most 256 values."""
    classes: ClassNames | None = None
    """Names of the K classes; null = the dataset's metadata, else Neutro, Stop, Long, SuperLong if K = 4."""
    window: Annotated[int, Field(ge=1, le=65536)] = 32
    """T: rows in one sample."""
    stride: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    """Rows between the ends of neighbouring windows."""
    max_gap_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """A window with two neighbouring rows further apart is skipped."""
    split: Split = FractionSplit()
    embargo_s: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """Seconds after each cut whose rows no validation or test window touches."""
    normalize: Literal["none", "standard", "robust"] = "none"
    """Of each feature, over the training rows: none; mean and deviation; median and quartiles."""
    shuffle: Literal["none", "block"] = "none"
    """none: time order; block: seeded, within `shuffle_buffer` windows."""
    shuffle_buffer: Annotated[int, Field(ge=1, le=2**31 - 1)] = 16384
    """Windows permuted together."""
    shuffle_run: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1
    """Consecutive windows drawn together."""
    non_finite: Literal["error", "skip", "zero"] = "error"
    """A feature that is not a number ends the job, drops its windows, or counts as 0."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        roles = [c for c in (self.timestamp, self.label, self.label_end, self.group) if c is not None]
        named = [self.features] if isinstance(self.features, str) else list(self.features or [])
        for column in {*roles, *named}:
            if (roles + named).count(column) > 1:
                raise ValueError(f"column {column!r} is named twice")
        return self


class VivitConfig(Section):
    """Per-snapshot 1-D convolutions over price levels, transformer encoder over time."""

    name: Literal["vivit"] = "vivit"
    d_model: Annotated[int, Field(ge=2, le=4096)] = 128
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of heads ({self.heads})")
        return self


class MlpConfig(Section):
    """Per-row projection, then a perceptron over the window."""

    name: Literal["mlp"] = "mlp"
    d_model: Annotated[int, Field(ge=1, le=4096)] = 64
    hidden: Annotated[int, Field(ge=1, le=65536)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class TransformerConfig(Section):
    """A projection per row, transformer encoder over time."""

    name: Literal["transformer"] = "transformer"
    d_model: Annotated[int, Field(ge=2, le=4096)] = 128
    heads: Annotated[int, Field(ge=1, le=64)] = 4
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model ({self.d_model}) must be a multiple of heads ({self.heads})")
        return self


class TcnConfig(Section):
    """A projection per row, dilated causal convolutions over time."""

    name: Literal["tcn"] = "tcn"
    d_model: Annotated[int, Field(ge=1, le=4096)] = 64
    kernel_size: Annotated[int, Field(ge=2, le=64)] = 3
    layers: Annotated[int, Field(ge=1, le=16)] | None = None
    """Residual blocks, each of twice the dilation; null = as many as it takes to see the whole window."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class LstmConfig(Section):
    """A projection per row, long short-term memory over time."""

    name: Literal["lstm"] = "lstm"
    d_model: Annotated[int, Field(ge=1, le=4096)] = 64
    hidden: Annotated[int, Field(ge=1, le=4096)] = 128
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class GruConfig(Section):
    """A projection per row, gated recurrent units over time."""

    name: Literal["gru"] = "gru"
    d_model: Annotated[int, Field(ge=1, le=4096)] = 64
    hidden: Annotated[int, Field(ge=1, le=4096)] = 128
    layers: Annotated[int, Field(ge=1, le=16)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class CnnLstmConfig(Section):
    """DeepLOB: convolutions over price levels, inception module and LSTM over time."""

    name: Literal["cnn_lstm"] = "cnn_lstm"
    channels: Annotated[int, Field(ge=1, le=1024)] = 32
    """Of each convolution; twice as many of the inception module's branches."""
    hidden: Annotated[int, Field(ge=1, le=4096)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


def _finite(value: Any) -> Any:
    json.dumps(value, allow_nan=False)  # ValueError: "Out of range float values are not JSON compliant"
    return value


class CustomConfig(Section):
    """A model of the operator's own: refused unless SAIMP_CUSTOM_MODELS allows its module."""

    name: Literal["custom"] = "custom"
    target: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256),
    ]
    """Where the class is: module:Class."""
    params: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$", max_length=64)], JsonValue],
        Field(max_length=64),
        AfterValidator(_finite),
    ] = {}
    """Keyword arguments, besides window, shape and num_classes."""


ModelConfig = Annotated[
    VivitConfig
    | MlpConfig
    | TransformerConfig
    | TcnConfig
    | LstmConfig
    | GruConfig
    | CnnLstmConfig
    | CustomConfig,
    Field(discriminator="name"),
]

ClassWeights = Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(min_length=2, max_length=256)]


def _some_weight(weights: Any) -> Any:
    if isinstance(weights, list) and not any(weights):
        raise ValueError("at least one class weight must be above 0")
    return weights


ClassWeightsChoice = Annotated[ClassWeights | Literal["auto"] | None, AfterValidator(_some_weight)]


class CrossEntropyConfig(Section):
    name: Literal["cross_entropy"] = "cross_entropy"
    class_weights: ClassWeightsChoice = "auto"
    """One weight a class; null = all 1; "auto" = [1, 10, 10, 20] when K = 4, else null."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class FocalConfig(Section):
    """Cross-entropy that looks away from what is already easy."""

    name: Literal["focal"] = "focal"
    class_weights: ClassWeightsChoice = "auto"
    """Alpha, one a class; null = all 1; "auto" = [1, 10, 10, 20] when K = 4, else null."""
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Focus: 0 is cross-entropy."""


CostMatrix = Annotated[
    list[
        Annotated[
            list[Annotated[float, Field(ge=0, le=1e6)]],
            Field(min_length=2, max_length=256, fail_fast=True),  # else 65,536 errors
        ]
    ],
    Field(min_length=2, max_length=256),
]


class OrdinalConfig(Section):
    """Cross-entropy plus the expected cost of confusing ordered classes."""

    name: Literal["ordinal"] = "ordinal"
    class_weights: ClassWeightsChoice = "auto"
    """One weight a class; null = all 1; "auto" = [1, 10, 10, 20] when K = 4, else null."""
    cost: CostMatrix | None = None
    """cost[label][prediction], KxK, 0 on the diagonal; null = ((label - prediction) / (K - 1)) squared."""
    cost_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """What the expected cost counts for beside the cross-entropy."""

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if self.cost is not None:
            if any(len(row) != len(self.cost) for row in self.cost):
                raise ValueError("cost must have as many columns as rows")
            if any(row[k] for k, row in enumerate(self.cost)):
                raise ValueError("cost must be 0 on the diagonal")
            if isinstance(self.class_weights, list) and len(self.class_weights) != len(self.cost):
                raise ValueError("cost and class_weights must be of the same number of classes")
        return self


LossConfig = Annotated[CrossEntropyConfig | FocalConfig | OrdinalConfig, Field(discriminator="name")]

Beta = Annotated[float, Field(ge=0, lt=1)]
# Not strict: by the time it is a tuple's turn, JSON has become Python, where strictness wants a tuple.
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]


class AdamWConfig(Section):
    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-5
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8


class AdamW8BitConfig(Section):
    """AdamW with its state in 8 bits; needs the package bitsandbytes where the worker runs."""

    name: Literal["adamw_8bit"] = "adamw_8bit"
    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-5
    betas: Betas = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8


class SgdConfig(Section):
    name: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-5

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum above 0")
        return self


OptimizerConfig = Annotated[AdamWConfig | AdamW8BitConfig | SgdConfig, Field(discriminator="name")]

WarmupSteps = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ConstantConfig(Section):
    name: Literal["constant"] = "constant"
    warmup_steps: WarmupSteps = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""


class LinearConfig(Section):
    """A straight line from lr down to final_ratio x lr at the end of the last epoch."""

    name: Literal["linear"] = "linear"
    warmup_steps: WarmupSteps = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    final_ratio: Fraction = 0.0


class CosineConfig(Section):
    """Half a cosine from lr down to final_ratio x lr at the end of the last epoch."""

    name: Literal["cosine"] = "cosine"
    warmup_steps: WarmupSteps = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    final_ratio: Fraction = 0.0


class OneCycleConfig(Section):
    """Up from lr / div_factor to lr, then down to lr / div_factor / final_div_factor, by half cosines."""

    name: Literal["one_cycle"] = "one_cycle"
    warmup_steps: WarmupSteps = 0
    """Optimizer steps of the way up; 0 = pct_start of all steps."""
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of all steps on the way up."""
    div_factor: Annotated[float, Field(ge=1, le=1e9)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1, le=1e9)] = 1e4


class PlateauConfig(Section):
    """A lower learning rate when the validation loss no longer falls."""

    name: Literal["plateau"] = "plateau"
    warmup_steps: WarmupSteps = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Annotated[int, Field(ge=0, le=100_000)] = 1
    """Validations without improvement that are borne before the learning rate falls."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """What counts as improvement, relative to the best loss."""
    min_ratio: Fraction = 0.0
    """The learning rate never falls below this share of lr."""


ScheduleConfig = Annotated[
    ConstantConfig | LinearConfig | CosineConfig | OneCycleConfig | PlateauConfig, Field(discriminator="name")
]


class TrainingConfig(Section):
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 15
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = 3
    """Physical micro-batch; "auto" = up to the effective batch."""
    accumulation_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Micro-batches to one optimizer step; unused with "auto"."""
    effective_batch: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Samples to one optimizer step; null = batch_size x accumulation_steps; 15 with "auto"."""
    loss_reduction: Annotated[
        Literal["effective_batch", "micro_batch"],
        Field(
            description="effective_batch: exact weighted mean; micro_batch: the classic loss of a micro-batch"
            " / accumulation_steps, with effective_batch given / ceil(effective_batch / batch_size)."
        ),
    ] = "effective_batch"
    clip_grad_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time, the same numbers."""
    compile: bool = False
    """Compile the model; one that does not compile runs as it is, with a warning."""
    tf32: bool = False
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, evaluated and saved in their place; null = off."""
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    deterministic: bool = False
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of torch; null = physical cores - 1, at least 1."""
    eval_batch_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Null = a constant of the trainer."""
    log_every: Annotated[int, Field(ge=1, le=1_000_000_000)] = 10
    """Micro-batches between metric rows and log lines."""

    @property
    def samples_per_step(self) -> int:
        """The effective batch: samples to one optimizer step."""
        if self.effective_batch is not None:
            return self.effective_batch
        return 15 if self.batch_size == "auto" else self.batch_size * self.accumulation_steps

    @property
    def nominal_batch(self) -> int:
        """Samples to one nominal micro-batch, the unit in which batches are counted."""
        return self.samples_per_step if self.batch_size == "auto" else self.batch_size

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if (
            self.batch_size != "auto"
            and self.effective_batch is not None
            and self.effective_batch < self.batch_size
        ):
            raise ValueError(
                f"effective_batch ({self.effective_batch}) must be at least batch_size ({self.batch_size})"
            )
        return self


class OomConfig(Section):
    recover: bool = True
    """Retry a step that ran out of GPU memory with a smaller micro-batch."""
    min_batch_size: Count = 1


class EarlyStoppingConfig(Section):
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = 3
    """Epochs without improvement of the validation loss; null = off."""
    min_delta: Annotated[float, Field(ge=0, le=1e9)] = 0.0


class CheckpointConfig(Section):
    every_s: Annotated[float, Field(ge=0, le=1e9)] | None = 300.0
    """Seconds between resume checkpoints (more if a copy takes 1 %); 0 = every step; null = only at stop."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 2


class LimitsConfig(Section):
    max_runtime_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Running time over all attempts."""


DEFAULT_NAMES = {"model": "vivit", "loss": "cross_entropy", "optimizer": "adamw", "schedule": "constant"}


class JobRequest(Section):
    """One training job. Only `data.path` is required."""

    name: Annotated[Text, StringConstraints(min_length=1, max_length=120)] | None = None
    tags: Annotated[
        list[Annotated[Text, StringConstraints(min_length=1, max_length=64)]], Field(max_length=16)
    ] = []
    metadata: Annotated[
        dict[
            Annotated[Text, StringConstraints(min_length=1, max_length=64)],
            Annotated[Text, StringConstraints(max_length=512)],
        ],
        Field(max_length=16),
    ] = {}
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Higher runs first."""
    depends_on: Annotated[list[JobId], Field(max_length=64)] = []
    """Jobs that must have succeeded first."""
    not_before: Time | None = None
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Crash budget: attempts in a row that may end without progress."""
    init_from: JobId | None = None
    """Start from the weights of this job's best; how features are normalised stays this job's own."""

    data: DataConfig
    model: ModelConfig = VivitConfig()
    loss: LossConfig = CrossEntropyConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ConstantConfig()
    training: TrainingConfig = TrainingConfig()
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """auto = fp16 with GradScaler on CUDA, fp32 on CPU."""
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")] = "auto"
    oom: OomConfig = OomConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """On the validation loss; null = off."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    limits: LimitsConfig = LimitsConfig()

    @field_validator("model", "loss", "optimizer", "schedule", mode="before")
    @classmethod
    def _default_name(cls, value: Any, info: ValidationInfo) -> Any:
        """A section without a name is one of the default's."""
        if isinstance(value, dict) and "name" not in value:
            return {"name": DEFAULT_NAMES[str(info.field_name)], **value}
        return value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _null_is_off(cls, value: Any) -> Any:
        return {"patience": None} if value is None else value


# What may change without changing what is computed.
LABELS = ("name", "tags", "metadata", "priority", "depends_on", "not_before", "max_attempts")
_FREE_OF_MEMORY = (
    "epochs",
    "loss_reduction",
    "clip_grad_norm",
    "tf32",
    "seed",
    "deterministic",
    "threads",
    "log_every",
)


def stored(config: Mapping[str, Any]) -> JobRequest:
    """Read the config of a job. What refuses more than an older version did is no part of the types here, but
    of the door: see `app.api.submit`.
    """
    return JobRequest.model_validate_json(json.dumps(config))


def canonical(value: Any) -> str:
    """Write JSON in the one order and spacing that hashes are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def changes(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name the fields that are not as by default, as (dotted name, JSON value) in the order of the body.

    A section of another name has its own defaults: {"name": "sgd"} is one change, optimizer.name.
    """
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), field.default
        if isinstance(value, Section):
            if (kind := getattr(value, "name", None)) != getattr(default, "name", None):
                yield f"{prefix}{name}.name", kind
            yield from changes(value, f"{prefix}{name}.")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            yield f"{prefix}{name}", values[name]


def memory_key(config: Mapping[str, Any]) -> str:
    """Name what of a stored config decides how much GPU memory a step takes."""
    config = counted(config)
    training = {k: v for k, v in config["training"].items() if k not in _FREE_OF_MEMORY}
    sections = {name: config[name] for name in ("data", "model", "precision", "device", "oom")}
    return canonical(
        {
            **sections,
            "training": training,
            "loss": config["loss"]["name"],
            "optimizer": config["optimizer"]["name"],
        }
    )


def config_hash(request: JobRequest) -> str:
    """Name what is computed: sha256 of the canonical config without its labels."""
    body = {k: v for k, v in counted(request.model_dump(mode="json")).items() if k not in LABELS}
    return hashlib.sha256(canonical(body).encode()).hexdigest()
