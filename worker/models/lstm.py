"""Long short-term memory over projected rows.

Hochreiter, Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735) with a forget gate (Gers, Schmidhuber, Cummins
2000, doi:10.1162/089976600300015015).

Shapes: B windows, T rows, R rows, F... the shape of one row, D = d_model, K classes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import LstmConfig
from worker.models.base import SequenceModel
from worker.models.recurrence import Recurrence


class Lstm(SequenceModel):
    """Project each row, run an LSTM over time, classify its last state."""

    def __init__(self, config: LstmConfig, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(math.prod(shape), config.d_model)
        self.recurrence = Recurrence(nn.LSTM, config.d_model, config.hidden, config.layers, config.dropout)
        self.classifier = nn.Linear(config.hidden, num_classes)

    def encode(self, rows_RF: Tensor) -> Tensor:
        return F.gelu(self.project(rows_RF.flatten(1)))

    def head(self, embedded_BTD: Tensor) -> Tensor:
        logits_BK: Tensor = self.classifier(self.recurrence(embedded_BTD))
        return logits_BK
