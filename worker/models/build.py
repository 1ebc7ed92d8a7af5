"""From a model's config to the model, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch
from torch.utils.flop_counter import FlopCounterMode

from app.jobs.config import (
    CnnLstmConfig,
    CustomConfig,
    GruConfig,
    LstmConfig,
    MlpConfig,
    ModelConfig,
    TcnConfig,
    TransformerConfig,
    VivitConfig,
)
from worker.models.base import SequenceModel
from worker.models.cnn_lstm import CnnLstm
from worker.models.custom import build_custom
from worker.models.gru import Gru
from worker.models.lstm import Lstm
from worker.models.mlp import Mlp
from worker.models.normalizer import Normalized, Scaling
from worker.models.tcn import Tcn
from worker.models.transformer import Transformer
from worker.models.vivit import Vivit


def build_model(
    config: ModelConfig,
    *,
    window: int,
    shape: Sequence[int],
    num_classes: int,
    allowed_prefixes: Sequence[str] = (),
    scaling: Scaling | None = None,
) -> SequenceModel:
    """Build the model a config names, initialised from torch's global random state.

    window: T, rows in a sample; shape: of one row, e.g. (4, 128); allowed_prefixes: modules that custom
    models may come from; scaling: how the model normalises its rows, None with `data.normalize` none.
    Raises ConfigInvalid for a custom model that is not allowed or cannot be built.
    """
    model = _build(config, window, tuple(shape), num_classes, allowed_prefixes)
    return model if scaling is None else Normalized(model, scaling)


def _build(
    config: ModelConfig,
    window: int,
    row_shape: tuple[int, ...],
    num_classes: int,
    allowed_prefixes: Sequence[str],
) -> SequenceModel:
    match config:
        case VivitConfig():
            return Vivit(config, window=window, shape=row_shape, num_classes=num_classes)
        case MlpConfig():
            return Mlp(config, window=window, shape=row_shape, num_classes=num_classes)
        case TransformerConfig():
            return Transformer(config, window=window, shape=row_shape, num_classes=num_classes)
        case TcnConfig():
            return Tcn(config, window=window, shape=row_shape, num_classes=num_classes)
        case LstmConfig():
            return Lstm(config, window=window, shape=row_shape, num_classes=num_classes)
        case GruConfig():
            return Gru(config, window=window, shape=row_shape, num_classes=num_classes)
        case CnnLstmConfig():
            return CnnLstm(config, window=window, shape=row_shape, num_classes=num_classes)
        case CustomConfig():
            return build_custom(
                config, allowed_prefixes, window=window, shape=row_shape, num_classes=num_classes
            )
        case _:
            assert_never(config)


def flops_per_sample(
    config: ModelConfig,
    *,
    window: int,
    shape: Sequence[int],
    num_classes: int,
    allowed_prefixes: Sequence[str] = (),
) -> int | None:
    """Count the additions and multiplications of one window's forward pass, without computing it.

    None for a custom model that cannot run without numbers.
    """

    def count(rows: int) -> int:
        with torch.device("meta"):
            model = build_model(
                config, window=rows, shape=shape, num_classes=num_classes, allowed_prefixes=allowed_prefixes
            ).eval()
            x_BTF = torch.empty(1, rows, *shape)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x_BTF)
        return int(counter.get_total_flops())

    match config:
        case LstmConfig() | GruConfig() | CnnLstmConfig():
            # Every step costs the same, and to walk through thousands of them takes seconds.
            first, both = count(1), count(2)
            return first + (window - 1) * (both - first)
        case CustomConfig():
            try:
                return count(window)
            except Exception:  # code of others, in a world without numbers: anything may happen
                return None
        case _:
            return count(window)
