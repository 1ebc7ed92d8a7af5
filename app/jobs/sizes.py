"""The sizes of a job's model and of its steps, asked of a short-lived process: this one never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.jobs.config import JobRequest, canonical

TIMEOUT_S = 60.0
# Each is a process that holds torch.
_AT_ONCE = threading.BoundedSemaphore(2)


@dataclass(frozen=True, slots=True)
class Cut:
    """How a step goes through the device, as on a rung of the OOM ladder."""

    batch_size: int  # micro-batch
    is_sharing: bool  # rows are encoded once for several micro-batches
    is_recomputing: bool  # activation checkpointing


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is known of a model; null where it is not. step_bytes: of each cut asked about.

    batch_layers: the layers whose numbers depend on which samples share a micro-batch. weights: the shape of
    each, by its name in a checkpoint (a normaliser's left out).
    """

    parameters: int | None = None
    flops_per_sample: int | None = None  # of a forward pass
    step_bytes: tuple[int | None, ...] = ()
    batch_layers: tuple[str, ...] = ()
    weights: Mapping[str, tuple[int, ...]] | None = None

    def model(self) -> dict[str, int | None]:
        """Render what a plan says of the model."""
        return {"parameters": self.parameters, "flops_per_sample": self.flops_per_sample}


UNKNOWN = Sizes()


def sizes(
    request: JobRequest,
    *,
    shape: Sequence[int],
    num_classes: int,
    precision: str,
    cuts: Sequence[Cut] = (),
    custom_prefixes: Sequence[str] = (),
) -> Sizes:
    """Measure a job without running it; nulls when that fails. precision: as resolved.

    A few seconds for what was not asked before, since torch is imported.
    """
    question = {
        "config": _what_matters(request),
        "precision": precision,
        "shape": list(shape),
        "num_classes": num_classes,
        "cuts": [[cut.batch_size, cut.is_sharing, cut.is_recomputing] for cut in cuts],
        "allowed_prefixes": list(custom_prefixes),
    }
    try:
        answer = _ask(canonical(question))
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN
    return Sizes(
        answer["parameters"],
        answer["flops_per_sample"],
        tuple(answer["step_bytes"]),
        tuple(answer["batch_layers"]),
        {name: tuple(shape) for name, shape in answer["weights"].items()},
    )


def _what_matters(request: JobRequest) -> dict[str, Any]:
    """Leave out what changes no size, so that a sweep asks once."""
    training = request.training
    return {
        "data": {"path": "any", "window": request.data.window},
        "model": request.model.model_dump(mode="json"),
        "loss": {"name": request.loss.name, "class_weights": None},
        "optimizer": {"name": request.optimizer.name},
        "training": {
            "batch_size": training.nominal_batch,
            "effective_batch": training.samples_per_step,
            "ema_decay": 0.5 if training.ema_decay else None,
        },
    }


@lru_cache(maxsize=256)
def _ask(question: str) -> Mapping[str, Any]:
    with _AT_ONCE:
        done = subprocess.run(
            [sys.executable, "-m", "worker.describe"],
            input=question,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def batch_statistics(layers: Sequence[str]) -> tuple[str, str] | None:
    """Warn of layers that look at a whole micro-batch, as (code, sentence); null when there are none."""
    if not layers:
        return None
    named = ", ".join(layers[:4]) + (", ..." if len(layers) > 4 else "")
    return (
        "batch_statistics",
        f"Layers of the model look at the whole micro-batch ({named}): in other micro-batches, also after the"
        " GPU ran out of memory, its numbers are others. GroupNorm and LayerNorm do not do that.",
    )
