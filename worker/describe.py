"""`python -m worker.describe`: the size of a model and of its steps, without training it.

Reads {"config": ..., "precision": ..., "shape": [...], "num_classes": K, "allowed_prefixes": [...], "cuts":
[[batch, sharing, recomputing], ...]} on stdin, writes {"parameters": n, "flops_per_sample": n, "step_bytes":
[n of each cut], "batch_layers": [...], "weights": {name: shape}} on stdout. A process of its own, so that the
API never loads torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from app.jobs.config import CustomConfig, JobRequest, stored
from worker.engine.resolve import Resolved
from worker.memory import step_bytes
from worker.models.base import batch_layers, num_parameters
from worker.models.build import build_model, flops_per_sample


def describe(question: dict[str, Any]) -> dict[str, Any]:
    """Measure a model: parameters, operations of one window's forward pass, memory of each cut of a step."""
    request = stored(question["config"])
    sizes = {key: question[key] for key in ("shape", "num_classes", "allowed_prefixes")}
    with torch.device("meta"):
        model = build_model(request.model, window=request.data.window, **sizes)
    return {
        "parameters": num_parameters(model),
        "flops_per_sample": flops_per_sample(request.model, window=request.data.window, **sizes),
        "step_bytes": [
            _step_bytes(request, _resolved(request, question["precision"], *cut), sizes)
            for cut in question["cuts"]
        ],
        "batch_layers": batch_layers(model),
        "weights": {name: list(weight.shape) for name, weight in model.state_dict().items()},
    }


def _resolved(
    request: JobRequest, precision: Any, batch_size: int, is_sharing: bool, is_recomputing: bool
) -> Resolved:
    return Resolved(
        device="cpu",
        precision=precision,
        threads=1,
        batch_size=batch_size,
        nominal_batch=batch_size,
        effective_batch=request.training.samples_per_step,
        eval_batch_size=1,
        class_weights=None,
        share_rows=is_sharing,
        activation_checkpointing=is_recomputing,
        lays_out_keys=False,
    )


def _step_bytes(request: JobRequest, resolved: Resolved, sizes: dict[str, Any]) -> int | None:
    try:
        return step_bytes(request, resolved, **sizes)
    except Exception:
        # Code of others, in a world without numbers: anything may happen.
        if isinstance(request.model, CustomConfig):
            return None
        raise


if __name__ == "__main__":
    json.dump(describe(json.load(sys.stdin)), sys.stdout)
