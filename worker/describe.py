"""`python -m worker.describe`: the size of a model, without training it.

Reads {"model": ..., "window": T, "shape": [...], "num_classes": K, "allowed_prefixes": [...]}
on stdin, writes {"parameters": n,
"flops_per_sample": n} on stdout. A process of its own, so that the API never loads torch.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from worker.models.base import num_parameters
from worker.models.build import build_model, flops_per_sample
from worker.models.load import MODEL_CONFIG


def describe(question: dict[str, Any]) -> dict[str, int | None]:
    """Count a model's parameters, and the operations of one window's forward pass."""
    config = MODEL_CONFIG.validate_json(json.dumps(question["model"]))
    sizes = {key: question[key] for key in ("window", "shape", "num_classes", "allowed_prefixes")}
    with torch.device("meta"):
        parameters = num_parameters(build_model(config, **sizes))
    return {"parameters": parameters, "flops_per_sample": flops_per_sample(config, **sizes)}


if __name__ == "__main__":
    json.dump(describe(json.load(sys.stdin)), sys.stdout)
