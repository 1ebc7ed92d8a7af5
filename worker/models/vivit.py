"""A factorised video transformer over book snapshots: convolutions in a snapshot, attention over time.

The factorised encoder of ViViT (Arnab et al. 2021, arXiv:2103.15691, model 2), with a convolutional snapshot
encoder in the manner of DeepLOB (Zhang, Zohren, Roberts 2019, arXiv:1808.03668) in place of the spatial
transformer.

Shapes: B windows, T rows, R rows, F... the shape of one row, C channels, L price levels, P positions after
pooling, D = d_model, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import VivitConfig
from worker.models.attention import Block
from worker.models.base import SequenceModel
from worker.models.dropout import Dropout

POSITIONS = 32  # of a snapshot, at most, after both poolings


class Vivit(SequenceModel):
    """Snapshot convolutions, learned positions in time, transformer encoder, MLP head on the last step."""

    def __init__(self, config: VivitConfig, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.snapshot = Snapshot(shape, config.d_model)
        self.positions_TD = nn.Parameter(torch.empty(window, config.d_model))
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.d_model, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.classifier = nn.Sequential(
            nn.Linear(config.d_model, config.d_model),
            nn.GELU(),
            Dropout(config.dropout),
            nn.Linear(config.d_model, num_classes),
        )
        nn.init.trunc_normal_(self.positions_TD, std=0.02)

    def encode(self, rows_RF: Tensor) -> Tensor:
        embedded_RD: Tensor = self.snapshot(rows_RF)
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


class Snapshot(nn.Module):
    """Embed one snapshot: two convolutions over price levels, each followed by pooling, then a projection.

    A shape (L,) is one channel; leading dimensions beyond (C, L) are channels too.
    """

    def __init__(self, shape: tuple[int, ...], d_model: int) -> None:
        super().__init__()
        *channels, levels = shape
        self.in_channels = math.prod(channels)
        self.first_pool = math.ceil(levels / (2 * POSITIONS))
        self.second_pool = math.ceil(math.ceil(levels / self.first_pool) / POSITIONS)
        positions = math.ceil(levels / (self.first_pool * self.second_pool))
        # Empty levels at the end, so that both poolings divide.
        self.padding = positions * self.first_pool * self.second_pool - levels
        self.first = nn.Conv1d(self.in_channels, 64, kernel_size=3, padding=1)
        self.second = nn.Conv1d(64, 128, kernel_size=3, padding=1)
        self.project = nn.Linear(128 * positions, d_model)

    def forward(self, rows_RF: Tensor) -> Tensor:
        x_RCL = rows_RF.reshape(rows_RF.shape[0], self.in_channels, -1)
        if self.padding:
            x_RCL = F.pad(x_RCL, (0, self.padding))
        x_RCL = _average(F.relu(self.first(x_RCL)), self.first_pool)
        x_RCP = _average(F.relu(self.second(x_RCL)), self.second_pool)
        embedded_RD: Tensor = self.project(x_RCP.flatten(1))
        return embedded_RD


def _average(x_RCL: Tensor, size: int) -> Tensor:
    """Average pooling: as sums of slices, forward and backward take half the time of avg_pool1d on a CPU."""
    if size == 1:
        return x_RCL
    total = x_RCL[..., ::size]
    for offset in range(1, size):
        total = total + x_RCL[..., offset::size]
    return total / size
