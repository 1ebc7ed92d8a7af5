"""Read a best checkpoint back: the model ready to use, and what is known about it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from app.jobs.config import ModelConfig
from worker.models.base import SequenceModel
from worker.models.build import build_model
from worker.models.normalizer import Scaling

MODEL_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


class CorruptCheckpoint(Exception):
    """A checkpoint is not the file its sidecar describes."""


def load(path: Path | str, *, allowed_prefixes: Sequence[str] = ()) -> tuple[SequenceModel, dict[str, Any]]:
    """Read `saimp_best.pth` and the `.json` beside it: the model on the CPU, in eval mode, and the sidecar.

    allowed_prefixes: modules that custom models may come from. Raises FileNotFoundError, CorruptCheckpoint
    when the sha256 differs from the sidecar's, and ConfigInvalid for a custom model that is not allowed.
    """
    path = Path(path)
    content = path.read_bytes()
    sidecar: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != sidecar["sha256"]:
        raise CorruptCheckpoint(
            f"{path.name} has sha256 {sha256}, its sidecar says {sidecar['sha256']}. Download both again."
        )
    shapes = sidecar["shapes"]
    is_normalized = sidecar["config"].get("data", {}).get("normalize", "none") != "none"
    # Only places for the numbers, which come with the weights.
    row = torch.zeros(shapes["row"])
    scaling = Scaling(row, row + 1) if is_normalized else None
    model = build_model(
        MODEL_CONFIG.validate_json(json.dumps(sidecar["config"]["model"])),
        window=shapes["window"],
        shape=shapes["row"],
        num_classes=shapes["num_classes"],
        allowed_prefixes=allowed_prefixes,
        scaling=scaling,
    ).to(torch.float32)  # as in training: a custom model may hold numbers of another type, rows are float32
    model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True, map_location="cpu"))
    return model.eval(), sidecar
