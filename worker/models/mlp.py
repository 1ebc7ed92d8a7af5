"""The plainest model that sees the whole window: a projection per row, then a perceptron over the window.

A one-hidden-layer perceptron (Rumelhart, Hinton, Williams 1986) with GELU (Hendrycks, Gimpel 2016,
arXiv:1606.08415).

Shapes: B windows, T rows, R rows, F... the shape of one row, D = d_model, K classes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import MlpConfig
from worker.models.base import SequenceModel
from worker.models.dropout import Dropout


class Mlp(SequenceModel):
    """Project each row, flatten the window, classify with one hidden layer."""

    def __init__(self, config: MlpConfig, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(math.prod(shape), config.d_model)
        self.classifier = nn.Sequential(
            Dropout(config.dropout),
            nn.Linear(window * config.d_model, config.hidden),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.hidden, num_classes),
        )

    def encode(self, rows_RF: Tensor) -> Tensor:
        return F.gelu(self.project(rows_RF.flatten(1)))

    def head(self, embedded_BTD: Tensor) -> Tensor:
        logits_BK: Tensor = self.classifier(embedded_BTD.flatten(1))
        return logits_BK
