"""A best checkpoint with its sidecar, as training leaves them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from app.jobs.config import JobRequest
from worker.models import SequenceModel, build_model
from worker.models.normalizer import Scaling


def save_best(
    folder: Path,
    model: dict[str, Any],
    *,
    data: dict[str, Any] | None = None,
    shape: tuple[int, ...] = (2, 6),
    columns: tuple[str, ...] = ("features",),
    classes: tuple[str, ...] = ("a", "b", "c"),
    seed: int = 0,
    scaling: Scaling | None = None,
    loss: dict[str, Any] | None = None,
) -> tuple[Path, SequenceModel]:
    """Save a model nothing was taught; return where, and the model in eval mode.

    scaling: of a job with `data.normalize`, float64 as it is fitted.
    """
    section = {"path": "x", "window": 4, **(data or {})}
    criterion = {"name": "cross_entropy", "class_weights": None, **(loss or {})}
    request = JobRequest.model_validate({"data": section, "model": model, "loss": criterion})
    torch.manual_seed(seed)
    net = build_model(
        request.model,
        window=request.data.window,
        shape=shape,
        num_classes=len(classes),
        allowed_prefixes=["tests"],
        scaling=scaling,
    ).float()
    path = folder / "saimp_best.pth"
    torch.save(net.state_dict(), path)
    sidecar = {
        "job_id": "JOB",
        "epoch": 3,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "config": request.model_dump(mode="json"),
        "resolved": {
            "features": list(columns),
            "shape": list(shape),
            "class_weights": criterion["class_weights"],
        },
        "classes": list(classes),
        "shapes": {"window": request.data.window, "row": list(shape), "num_classes": len(classes)},
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path, net.eval()
