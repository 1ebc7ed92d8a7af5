"""A transformer encoder over rows as they are: a projection each, then attention over time.

The encoder of Attention Is All You Need (Vaswani et al. 2017, arXiv:1706.03762) with learned positions, its
last step classified.

Shapes: B windows, T rows, R rows, F... the shape of one row, D = d_model, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from app.jobs.config import TransformerConfig
from worker.models.attention import Block
from worker.models.base import SequenceModel
from worker.models.dropout import Dropout


class Transformer(SequenceModel):
    """Project each row, add learned positions, attend over time, classify the last step."""

    def __init__(
        self, config: TransformerConfig, *, window: int, shape: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(math.prod(shape), config.d_model)
        self.positions_TD = nn.Parameter(torch.empty(window, config.d_model))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.classifier = nn.Linear(config.d_model, num_classes)
        nn.init.trunc_normal_(self.positions_TD, std=0.02)

    def encode(self, rows_RF: Tensor) -> Tensor:
        embedded_RD: Tensor = self.project(rows_RF.flatten(1))
        return embedded_RD

    def head(self, embedded_BTD: Tensor) -> Tensor:
        x_BTD = self.dropout(embedded_BTD + self.positions_TD)
        *earlier, last = self.blocks
        for block in earlier:
            x_BTD = block(x_BTD)
        # Only the last step is classified, so the last layer answers one query.
        x_BD = last(x_BTD, num_queries=1).squeeze(1)
        logits_BK: Tensor = self.classifier(self.norm(x_BD))
        return logits_BK
