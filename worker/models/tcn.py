"""A temporal convolutional network: dilated causal convolutions, each block of twice the dilation.

An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling (Bai, Kolter,
Koltun 2018, arXiv:1803.01271), without weight normalisation.

Only the last step is classified, and of a block of dilation d it needs every d-th step only. So a block is an
undilated convolution over the steps that are left, and leaves every second one to the next: the same numbers
as the dilated network for about two blocks' work, however many blocks there are.

Shapes: B windows, T rows (S of them left), R rows, F... the shape of one row, D = d_model, K classes.
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import TcnConfig
from worker.models.base import SequenceModel
from worker.models.dropout import Dropout


class Tcn(SequenceModel):
    """Project each row, convolve over time, classify the last step."""

    def __init__(self, config: TcnConfig, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        layers = config.layers or layers_to_see(window, config.kernel_size)
        self.project = nn.Linear(math.prod(shape), config.d_model)
        self.blocks = nn.ModuleList(
            CausalBlock(config.d_model, config.kernel_size, config.dropout) for _ in range(layers)
        )
        self.classifier = nn.Linear(config.d_model, num_classes)

    def encode(self, rows_RF: Tensor) -> Tensor:
        embedded_RD: Tensor = self.project(rows_RF.flatten(1))
        return embedded_RD

    def head(self, embedded_BTD: Tensor) -> Tensor:
        x_BDS = embedded_BTD.transpose(1, 2)
        for block in self.blocks:
            x_BDS = every_second(block(x_BDS))
        logits_BK: Tensor = self.classifier(x_BDS[..., -1])
        return logits_BK


def layers_to_see(window: int, kernel_size: int) -> int:
    """Count the blocks, 1 at least, whose last step depends on all `window` rows."""
    layers = 1
    while 1 + 2 * (kernel_size - 1) * (2**layers - 1) < window:
        layers += 1
    return layers


def every_second(x_BDS: Tensor) -> Tensor:
    """Keep every second step, counted back from the last."""
    return x_BDS[..., (x_BDS.shape[-1] - 1) % 2 :: 2]


class CausalBlock(nn.Module):
    """Two causal convolutions, each with ReLU and dropout, added to their input: [B, D, S] -> [B, D, S]."""

    def __init__(self, d_model: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.past = kernel_size - 1
        self.first = nn.Conv1d(d_model, d_model, kernel_size)
        self.second = nn.Conv1d(d_model, d_model, kernel_size)
        self.dropout = Dropout(dropout)

    def forward(self, x_BDS: Tensor) -> Tensor:
        y_BDS = self.dropout(F.relu(self.first(F.pad(x_BDS, (self.past, 0)))))
        y_BDS = self.dropout(F.relu(self.second(F.pad(y_BDS, (self.past, 0)))))
        return F.relu(x_BDS + y_BDS)
