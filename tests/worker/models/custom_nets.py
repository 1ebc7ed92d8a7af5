"""Models an operator might bring."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worker.models.base import SequenceModel


class Windows(nn.Module):
    """Any module: it takes whole windows."""

    def __init__(self, window: int, shape: tuple[int, ...], num_classes: int, width: int = 3) -> None:
        super().__init__()
        self.hidden = nn.Linear(window * math.prod(shape), width)
        self.out = nn.Linear(width, num_classes)

    def forward(self, x_BTF: Tensor) -> Tensor:
        logits_BK: Tensor = self.out(torch.tanh(self.hidden(x_BTF.flatten(1))))
        return logits_BK


class Rows(SequenceModel):
    """A model in the house's own terms."""

    def __init__(self, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(math.prod(shape), num_classes)

    def encode(self, rows_RF: Tensor) -> Tensor:
        logits_RK: Tensor = self.project(rows_RF.flatten(1))
        return logits_RK

    def head(self, embedded_BTD: Tensor) -> Tensor:
        return embedded_BTD.mean(1)


class Stubborn(Windows):
    """One that looks at its numbers, so that it cannot run without any."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        return super().forward(x_BTF * float(x_BTF.abs().max()))


def no_model(**_: object) -> str:
    """Return something else."""
    return "surprise"
