"""The names of every field that a version writes down: of a body, of `resolved`, of events and checkpoints.

Run in the source tree of a version, whichever it is: python names.py
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from app.jobs.config import JobRequest
from worker.engine import events
from worker.engine.resolve import Resolved
from worker.models import build_model


def of_body() -> list[str]:
    """Name the fields of a job's body by their paths, as app/jobs/later.py does."""
    return sorted(defaults())


def defaults() -> dict[str, Any]:
    """Give the default of each field of a job's body, by its path."""
    return dict(_of_section(JobRequest, ""))


def of_resolved() -> list[str]:
    """Name the keys of `resolved` that the engine computes by."""
    return sorted(field.name for field in fields(Resolved))


def of_events() -> list[str]:
    """Name the fields of the events of an attempt, and of what they are made of."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and is_dataclass(kind)]
    return sorted(f"{kind.__name__}.{field.name}" for kind in kinds for field in fields(kind))


def of_weights() -> dict[str, list[str]]:
    """Name the weights and buffers of each model with their shapes: resume checkpoints hold them by name."""
    found = {}
    for kind in typing.get_args(JobRequest.model_fields["model"].annotation):
        if (called := kind.model_fields["name"].default) == "custom":
            continue
        with torch.device("meta"):
            model = build_model(kind(), window=8, shape=(2, 8), num_classes=4)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        found[called] = [f"{name} {list(tensor.shape)}" for name, tensor in tensors]
    return found


def of_checkpoint(path: Path) -> list[str]:
    """Name the keys of a resume checkpoint, but for weights and what torch keeps of the optimizer."""
    state = torch.load(path, weights_only=True)
    state["best"] = json.loads(state["best"]) if state["best"] else None
    return sorted(set(_keys(state)) - {"best.sidecar"})


def all_names() -> dict[str, Any]:
    """Name all that is known without a file."""
    return {"body": of_body(), "resolved": of_resolved(), "events": of_events(), "weights": of_weights()}


def _of_section(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        default = field.default
        yield prefix + name, default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        yield from _of_annotation(field.annotation, prefix + name)


def _of_annotation(annotation: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = getattr(annotation.model_fields.get("name"), "default", None)
        yield from _of_section(annotation, f"{path}.{kind}." if isinstance(kind, str) else f"{path}.")
    for part in typing.get_args(annotation):
        yield from _of_annotation(part, path)


def _keys(value: Any, prefix: str = "") -> Iterator[str]:
    for name, item in value.items():
        path = prefix + str(name)
        yield path
        if isinstance(item, dict) and path not in (
            "weights",
            "optimizer",
            "best.sidecar",
            "scaler",
            "schedule",
        ):
            yield from _keys(item, f"{path}.")


if __name__ == "__main__":
    json.dump(all_names(), sys.stdout)
