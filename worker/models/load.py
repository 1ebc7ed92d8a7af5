"""Read a best checkpoint back: the model ready to use, and what is known about it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from app.errors import shown
from app.jobs.config import ModelConfig
from worker.models.about import About, State, carried
from worker.models.base import SequenceModel
from worker.models.build import build_model
from worker.models.normalizer import Scaling

MODEL_CONFIG: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
_AGAIN = "Fetch both again: `saimp pull JOB`."


class CorruptCheckpoint(Exception):
    """A checkpoint is no checkpoint, or not the file its sidecar describes."""


def load(path: Path | str, *, allowed_prefixes: Sequence[str] = ()) -> tuple[SequenceModel, dict[str, Any]]:
    """Read `saimp_best.pth`: the model on the CPU, in eval mode, and what is known about it.

    The second is the sidecar, `saimp_best.json`, when it lies beside the file, which then has to be the one
    it describes; else the part of it that travels in the file: `classes`, `shapes`, of `config` the sections
    data, model and loss, of `resolved` the features, shape and class_weights. Both hold the file's `sha256`.
    allowed_prefixes: modules that custom models may come from.
    Raises FileNotFoundError, which says what is missing and how to get it; CorruptCheckpoint; and
    ConfigInvalid for a custom model that is not allowed.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no file {path}. `saimp pull JOB` fetches a job's best checkpoint."
        ) from None
    sha256 = hashlib.sha256(content).hexdigest()
    beside = _beside(path, sha256)
    weights = _weights(path, content)
    about = beside or _carried(path, weights, sha256)
    try:
        model = _built(about, allowed_prefixes)
        model.load_state_dict(weights)
    except KeyError as error:
        raise CorruptCheckpoint(f"What is known of {path.name} lacks {error}. {_AGAIN}") from error
    except (ValidationError, RuntimeError) as error:
        why = shown(str(error).splitlines()[-1].strip(), 200)
        raise CorruptCheckpoint(
            f"{path.name} does not fit what is known of it: {why}. If a newer version made it, use that one."
        ) from error
    return model.eval(), about


def _built(about: About, allowed_prefixes: Sequence[str]) -> SequenceModel:
    """Build the model that is described, with any numbers."""
    config, shapes = about["config"], about["shapes"]
    is_normalized = config.get("data", {}).get("normalize", "none") != "none"
    # Only places for the numbers, which come with the weights.
    row = torch.zeros(shapes["row"])
    return build_model(
        MODEL_CONFIG.validate_json(json.dumps(config["model"])),
        window=shapes["window"],
        shape=shapes["row"],
        num_classes=shapes["num_classes"],
        allowed_prefixes=allowed_prefixes,
        scaling=Scaling(row, row + 1) if is_normalized else None,
    ).to(torch.float32)  # as in training: a custom model may hold numbers of another type, rows are float32


def _beside(path: Path, sha256: str) -> About | None:
    """Read the sidecar of a checkpoint; null when there is none."""
    sidecar = path.with_suffix(".json")
    try:
        about = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        about = None
    if not isinstance(about, dict) or "sha256" not in about:
        raise CorruptCheckpoint(f"{sidecar} describes no checkpoint. {_AGAIN}")
    if about["sha256"] != sha256:
        raise CorruptCheckpoint(
            f"{path.name} has sha256 {sha256}, its sidecar says {about['sha256']}. {_AGAIN}"
            f" If {sidecar.name} is of another file, take it away."
        )
    return about


def _weights(path: Path, content: bytes) -> State:
    try:
        weights: Any = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever bytes lead the unpickler to
        begins = shown(repr(content[:32]))
        raise CorruptCheckpoint(
            f"{path} is no checkpoint, or a damaged one: it begins with {begins}. {_AGAIN}"
        ) from error
    if not isinstance(weights, dict):
        raise CorruptCheckpoint(f"{path} holds no weights, but a {type(weights).__name__}. {_AGAIN}")
    return weights


def _carried(path: Path, weights: State, sha256: str) -> About:
    """Read what travelled with the weights."""
    about = carried(weights)
    if about is None:
        raise FileNotFoundError(
            f"{path.with_suffix('.json')} is missing, which says what model {path.name} is of."
            " `saimp pull JOB` fetches both, or GET /jobs/JOB/artifacts/saimp_best.json the one."
        )
    return {**about, "sha256": sha256}
