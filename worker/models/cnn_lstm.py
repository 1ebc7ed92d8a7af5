"""DeepLOB: convolutions over the levels of a book, an inception module and an LSTM over time.

DeepLOB: Deep Convolutional Neural Networks for Limit Order Books (Zhang, Zohren, Roberts 2019,
arXiv:1808.03668). There, convolutions over levels (1 x 2, stride 2, twice; then one over all that is left)
alternate with convolutions over time (4 x 1, twice after each). Here all of those over levels come first, so
that a row is encoded once for all windows that hold it, and those over time are two.

Shapes: B windows, T rows, R rows, F... the shape of one row, C = channels, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import CnnLstmConfig
from worker.models.base import SequenceModel
from worker.models.recurrence import Recurrence

SLOPE = 0.01  # of LeakyReLU, as in the paper
TIME_KERNEL = 4


class CnnLstm(SequenceModel):
    """Convolve over levels, then over time at several widths, run an LSTM, classify its last state."""

    def __init__(
        self, config: CnnLstmConfig, *, window: int, shape: tuple[int, ...], num_classes: int
    ) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.levels = Levels(shape, config.channels)
        self.time = nn.ModuleList(nn.Conv1d(config.channels, config.channels, TIME_KERNEL) for _ in range(2))
        self.inception = Inception(config.channels, 2 * config.channels)
        self.recurrence = Recurrence(nn.LSTM, 6 * config.channels, config.hidden, 1, config.dropout)
        self.classifier = nn.Linear(config.hidden, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                # He et al. 2015, arXiv:1502.01852: torch's own would lose the signal over seven layers.
                nn.init.kaiming_normal_(module.weight, a=SLOPE, nonlinearity="leaky_relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def encode(self, rows_RF: Tensor) -> Tensor:
        embedded_RC: Tensor = self.levels(rows_RF)
        return embedded_RC

    def head(self, embedded_BTD: Tensor) -> Tensor:
        x_BCT = embedded_BTD.transpose(1, 2)
        for convolution in self.time:
            x_BCT = _leaky(convolution(F.pad(x_BCT, (TIME_KERNEL - 1, 0))))
        x_BCT = self.inception(x_BCT)
        logits_BK: Tensor = self.classifier(self.recurrence(x_BCT.transpose(1, 2)))
        return logits_BK


class Levels(nn.Module):
    """Embed one snapshot: twice two neighbouring levels become one, then all that are left: [R, C].

    A shape (L,) is one channel; leading dimensions beyond (C, L) are channels too.
    """

    def __init__(self, shape: tuple[int, ...], channels: int) -> None:
        super().__init__()
        *leading, levels = shape
        self.in_channels = math.prod(leading)
        left = math.ceil(levels / 4)
        # Empty levels at the end, so that both halvings come out even.
        self.padding = 4 * left - levels
        self.first = nn.Conv1d(self.in_channels, channels, kernel_size=2, stride=2)
        self.second = nn.Conv1d(channels, channels, kernel_size=2, stride=2)
        self.third = nn.Conv1d(channels, channels, kernel_size=left)

    def forward(self, rows_RF: Tensor) -> Tensor:
        x_RCL = rows_RF.reshape(rows_RF.shape[0], self.in_channels, -1)
        if self.padding:
            x_RCL = F.pad(x_RCL, (0, self.padding))
        for convolution in (self.first, self.second, self.third):
            x_RCL = _leaky(convolution(x_RCL))
        return x_RCL.squeeze(2)


class Inception(nn.Module):
    """Look at time through three widths at once: [B, C, T] -> [B, 3 x width, T]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.short = nn.ModuleList((nn.Conv1d(channels, width, 1), nn.Conv1d(width, width, 3, padding=1)))
        self.long = nn.ModuleList((nn.Conv1d(channels, width, 1), nn.Conv1d(width, width, 5, padding=2)))
        self.pooled = nn.Conv1d(channels, width, 1)

    def forward(self, x_BCT: Tensor) -> Tensor:
        short_BCT, long_BCT = x_BCT, x_BCT
        for convolution in self.short:
            short_BCT = _leaky(convolution(short_BCT))
        for convolution in self.long:
            long_BCT = _leaky(convolution(long_BCT))
        return torch.cat([short_BCT, long_BCT, _leaky(self.pooled(_highest_of_3(x_BCT)))], dim=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _highest_of_3(x_BCT: Tensor) -> Tensor:
    """Max pooling of width 3 at stride 1, as slices: that of torch has no deterministic backward on CUDA."""
    edged_BCT = F.pad(x_BCT, (1, 1), value=-math.inf)
    return torch.maximum(torch.maximum(edged_BCT[..., :-2], x_BCT), edged_BCT[..., 2:])
