"""Whether a job can start from the weights of another: told at submit, in the words of the job's body."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import Problem, shown
from app.jobs.config import JobRequest
from app.jobs.sizes import sizes

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shaped:
    """What decides the shapes of a job's weights. shape: of one row."""

    request: JobRequest
    shape: tuple[int, ...]
    num_classes: int

    def facts(self) -> dict[str, Any]:
        """Name what may decide a shape, as the user knows it."""
        model = self.request.model.model_dump(mode="json", exclude={"dropout"})
        return {
            **{f"model.{name}": value for name, value in model.items()},
            "data.window": self.request.data.window,
            "the features of a row": list(self.shape),
            "the number of classes": self.num_classes,
        }

    def weights(self, custom_prefixes: Sequence[str]) -> Shapes | None:
        """Name the weights with their shapes; null when that cannot be told without training."""
        return sizes(
            self.request,
            shape=self.shape,
            num_classes=self.num_classes,
            precision="fp32",
            custom_prefixes=custom_prefixes,
        ).weights


def unfit_weights(ours: Shaped, theirs: Shaped, custom_prefixes: Sequence[str] = ()) -> list[Problem]:
    """Say why the weights of the job `init_from` names do not fit; empty when they do, or nobody can tell."""
    here, there = ours.facts(), theirs.facts()
    differing = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
    if not differing:
        return []
    found, wanted = theirs.weights(custom_prefixes), ours.weights(custom_prefixes)
    if found is None or wanted is None or found == wanted:
        return []
    listed = ", ".join(
        f"{name} ({_value(here, name)} here, {_value(there, name)} there)" for name in differing
    )
    message = f"the weights of this job do not fit: {_difference(wanted, found)}"
    return [Problem("/init_from", "shape_mismatch", message, f"Make what differs agree: {listed}.")]


def _difference(wanted: Shapes, found: Shapes) -> str:
    """Say the first thing that differs."""
    name = next(name for name in [*wanted, *found] if wanted.get(name) != found.get(name))
    return f"{shown(name)} is {_shape(wanted.get(name))} here and {_shape(found.get(name))} there"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "one number"


def _value(facts: Mapping[str, Any], name: str) -> str:
    return shown(json.dumps(facts[name])) if name in facts else "absent"
