"""What every null and auto of a job becomes on this machine, decided once and stored with the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import psutil
import torch

from app.jobs import later
from app.jobs.config import JobRequest
from worker.engine.errors import ConfigInvalid
from worker.engine.events import Rung
from worker.engine.precision import PrecisionName

EVAL_BATCH = 64  # samples; larger is no faster on a CPU, and 64 share their rows well
FOUR_CLASS_WEIGHTS = [1.0, 10.0, 10.0, 20.0]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Everything the engine computes by that the request leaves open. JSON by `dataclasses.asdict`."""

    device: str  # "cpu" or "cuda:N"
    precision: PrecisionName
    threads: int
    batch_size: int  # physical micro-batch to begin with
    nominal_batch: int
    effective_batch: int
    eval_batch_size: int
    class_weights: list[float] | None
    share_rows: bool  # rows are encoded once for several micro-batches
    activation_checkpointing: bool
    lays_out_keys: bool  # attention by one query as it was first computed; no longer begun with


def resolve(
    request: JobRequest, *, num_classes: int, rung: Rung | None = None, own: str | None = None
) -> Resolved:
    """Settle what the request leaves open. Raises ConfigInvalid when machine or data do not allow it.

    rung: where on the OOM ladder to start; null = at its top.
    own: the device "auto" and "cuda" stand for; null = the first there is.
    """
    training = request.training
    device = resolve_device(request.device, own)
    batch_size, eval_batch_size = training.nominal_batch, training.eval_batch_size or EVAL_BATCH
    if rung is not None:
        batch_size, eval_batch_size = (
            min(batch_size, rung.batch_size),
            min(eval_batch_size, rung.eval_batch_size),
        )
    return Resolved(
        device=str(device),
        precision=resolve_precision(request.precision, device),
        threads=training.threads or max(1, (psutil.cpu_count(logical=False) or 1) - 1),
        batch_size=batch_size,
        nominal_batch=training.nominal_batch,
        effective_batch=training.samples_per_step,
        eval_batch_size=eval_batch_size,
        class_weights=resolve_class_weights(request.loss.class_weights, num_classes),
        share_rows=rung is None or rung.is_sharing,
        activation_checkpointing=training.activation_checkpointing
        or (rung is not None and rung.is_recomputing),
        lays_out_keys=False,
    )


def settled(stored: Mapping[str, Any], request: JobRequest) -> Resolved:
    """Read what was settled before, perhaps by a version that had less to settle."""
    known = later.resolved(stored, request.model_dump(mode="json"))
    return Resolved(**{field.name: known[field.name] for field in fields(Resolved)})


def resolve_device(name: str, own: str | None = None) -> torch.device:
    """Settle "auto", "cpu", "cuda" or "cuda:N". Raises ConfigInvalid for a GPU that is not there."""
    if own is not None and (name == "auto" or (name == "cuda" and own.startswith("cuda"))):
        name = "cpu" if own.startswith("cpu") else own
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise ConfigInvalid(
            f"device is {name!r}, but this machine has {count} usable CUDA devices.",
            'Set device to "auto" or "cpu".',
        )
    return torch.device("cuda", index)


def resolve_precision(name: Literal["auto", "fp16", "bf16", "fp32"], device: torch.device) -> PrecisionName:
    """Settle "auto": fp16 on a GPU, fp32 on a CPU."""
    if name == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return name


def resolve_class_weights(
    weights: list[float] | Literal["auto"] | None, num_classes: int
) -> list[float] | None:
    """Settle "auto": 1, 10, 10, 20 for four classes, else none. Raises ConfigInvalid for a wrong count."""
    if weights == "auto":
        return FOUR_CLASS_WEIGHTS if num_classes == len(FOUR_CLASS_WEIGHTS) else None
    if weights is not None and len(weights) != num_classes:
        raise ConfigInvalid(
            f"loss.class_weights has {len(weights)} weights, the data have {num_classes} classes.",
            "Give one weight for each class, in the order of data.classes.",
        )
    return weights
