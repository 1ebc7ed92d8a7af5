"""What is known of a best checkpoint: its sidecar, and the part of it that travels in the file itself.

A `state_dict` may carry facts besides its tensors: PyTorch keeps the versions of modules there. So a
checkpoint that came alone can be used, and is still what `torch.load(path, weights_only=True)` reads.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

About = dict[str, Any]
State = Mapping[str, Tensor]

KEY = "/saimp"  # no module is called so
# Nothing that differs between jobs whose models are equal: such checkpoints are equal files.
CARRIED: dict[str, tuple[str, ...]] = {
    "config": ("data", "model", "loss"),
    "resolved": ("features", "shape", "class_weights", "cuts_ns"),
    "shapes": ("window", "row", "num_classes"),
}


def carry(weights: OrderedDict[str, Tensor], state: State, sidecar: Mapping[str, Any]) -> None:
    """Put what using a model takes into its weights. state: its own, with the versions of its modules."""
    about = {"classes": sidecar.get("classes")} | {
        section: {key: sidecar[section][key] for key in keys if key in sidecar[section]}
        for section, keys in CARRIED.items()
        if section in sidecar
    }
    versions = getattr(state, "_metadata", {})
    weights._metadata = OrderedDict(versions) | {KEY: {"about": json.dumps(about, sort_keys=True)}}  # type: ignore[attr-defined]


def carried(weights: State) -> About | None:
    """Read what travelled with the weights; null in a file of before."""
    found = getattr(weights, "_metadata", {}).get(KEY)
    about: About | None = None if found is None else json.loads(found["about"])
    return about
