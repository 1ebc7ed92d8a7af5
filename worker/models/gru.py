"""Gated recurrent units over projected rows.

Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation (Cho et al.
2014, arXiv:1406.1078).

Shapes: B windows, T rows, R rows, F... the shape of one row, D = d_model, K classes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import GruConfig
from worker.models.base import SequenceModel
from worker.models.recurrence import Recurrence


class Gru(SequenceModel):
    """Project each row, run gated recurrent units over time, classify their last state."""

    def __init__(self, config: GruConfig, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(math.prod(shape), config.d_model)
        self.recurrence = Recurrence(nn.GRU, config.d_model, config.hidden, config.layers, config.dropout)
        self.classifier = nn.Linear(config.hidden, num_classes)

    def encode(self, rows_RF: Tensor) -> Tensor:
        return F.gelu(self.project(rows_RF.flatten(1)))

    def head(self, embedded_BTD: Tensor) -> Tensor:
        logits_BK: Tensor = self.classifier(self.recurrence(embedded_BTD))
        return logits_BK
