"""Models of the operator's own, imported by name; the operator says from where.

A target is a class called with window, shape, num_classes and the job's params. It is a SequenceModel, or any
module that takes whole windows [B, T, *shape] and gives logits [B, K].

Shapes: B windows, T rows, R rows, F... the shape of one row, E elements of one row, K classes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from app.errors import shown
from app.jobs.config import CustomConfig
from app.jobs.custom import is_allowed
from worker.engine.errors import ConfigInvalid
from worker.models.base import SequenceModel


def build_custom(
    config: CustomConfig,
    allowed_prefixes: Sequence[str],
    *,
    window: int,
    shape: tuple[int, ...],
    num_classes: int,
) -> SequenceModel:
    """Import and build what a target names. Raises ConfigInvalid when it is not allowed or is no model."""
    if not is_allowed(config.target, allowed_prefixes):
        raise ConfigInvalid(
            f"The model {shown(config.target)!r} is not allowed here.",
            "The operator allows module prefixes in SAIMP_CUSTOM_MODELS.",
        )
    try:
        model = _find(config.target)(window=window, shape=shape, num_classes=num_classes, **config.params)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigInvalid(
            f"The model {shown(config.target)!r} cannot be built: {shown(error, 256)}",
            "Its class is called with window, shape, num_classes and model.params.",
        ) from error
    if isinstance(model, SequenceModel):
        return model
    if isinstance(model, nn.Module):
        return WholeWindows(model, window=window, shape=shape, num_classes=num_classes)
    raise ConfigInvalid(
        f"The model {shown(config.target)!r} gives a {type(model).__name__}, not a torch.nn.Module.",
        "Name a class in model.target.",
    )


class WholeWindows(SequenceModel):
    """A module that knows windows only: rows are not encoded. Its weights keep the names it gave them."""

    def __init__(self, net: nn.Module, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.net = net
        # Hooks, since a model around this one (`Normalized`) would not call methods of ours.
        self.register_state_dict_post_hook(_drop_net)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_add_net)  # type: ignore[no-untyped-call]

    def encode(self, rows_RF: Tensor) -> Tensor:
        return rows_RF.flatten(1)

    def head(self, embedded_BTD: Tensor) -> Tensor:
        assert embedded_BTD.shape[-1] == math.prod(self.shape)
        logits_BK: Tensor = self.net(embedded_BTD.view(*embedded_BTD.shape[:2], *self.shape))
        return logits_BK


def _drop_net(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    """Name the weights as the net does: `hidden.weight`, not `net.hidden.weight`."""
    _rename(state, f"{prefix}net.", prefix)


def _add_net(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Find the weights under the names the net gave them."""
    _rename(state, prefix, f"{prefix}net.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """Let what begins with `old` begin with `new`, in the same order."""
    # All at once: a net may have a part called net.
    moved = [(name.removeprefix(old), state.pop(name)) for name in list(state) if name.startswith(old)]
    state.update({new + name: value for name, value in moved})


def _find(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
