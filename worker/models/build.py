"""From a model's config to the model, and from a best checkpoint back to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.jobs.config import MlpConfig, ModelConfig, VivitConfig
from worker.models.base import SequenceModel
from worker.models.mlp import Mlp
from worker.models.vivit import Vivit


def build_model(config: ModelConfig, *, window: int, shape: Sequence[int], num_classes: int) -> SequenceModel:
    """Build the model a config names, initialised from torch's global random state.

    window: T, rows in a sample; shape: of one row, e.g. (4, 128).
    """
    row_shape = tuple(shape)
    match config:
        case VivitConfig():
            return Vivit(config, window=window, shape=row_shape, num_classes=num_classes)
        case MlpConfig():
            return Mlp(config, window=window, shape=row_shape, num_classes=num_classes)
        case _:
            assert_never(config)


def flops_per_sample(config: ModelConfig, *, window: int, shape: Sequence[int], num_classes: int) -> int:
    """Count the additions and multiplications of one window's forward pass, without computing it."""
    with torch.device("meta"):
        model = build_model(config, window=window, shape=shape, num_classes=num_classes).eval()
        x_BTF = torch.empty(1, window, *shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x_BTF)
    return int(counter.get_total_flops())
