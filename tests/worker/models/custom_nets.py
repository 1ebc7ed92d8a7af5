"""Models an operator might bring."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

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


class Normalised(Windows):
    """One whose numbers depend on which windows share a micro-batch."""

    def __init__(self, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window, shape, num_classes)
        self.norm = nn.BatchNorm1d(num_classes)

    def forward(self, x_BTF: Tensor) -> Tensor:
        logits_BK: Tensor = self.norm(super().forward(x_BTF))
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


class Precise(Rows):
    """One that makes numbers of double precision: in training they become those of the weights."""

    kept: Tensor
    not_kept: Tensor

    def __init__(self, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window, shape, num_classes)
        self.register_buffer("kept", torch.full(shape, 2.0, dtype=torch.float64))
        self.register_buffer("not_kept", torch.full(shape, 0.1, dtype=torch.float64), persistent=False)

    def encode(self, rows_RF: Tensor) -> Tensor:
        return super().encode(rows_RF / self.kept + self.not_kept)


class Stubborn(Windows):
    """One that looks at its numbers, so that it cannot run without any."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        return super().forward(x_BTF * float(x_BTF.abs().max()))


class Greedy(Windows):
    """One that runs out of memory in training with more than `most` windows at once.

    where: of the GPU, in the forward pass or in the optimizer's step, or of the machine.
    """

    def __init__(self, window: int, shape: tuple[int, ...], num_classes: int, most: int, where: str) -> None:
        super().__init__(window, shape, num_classes)
        self._most, self._where = most, where
        self._windows = self._num_steps = 0
        if where == "step":
            register_optimizer_step_pre_hook(self._before_step)

    def forward(self, x_BTF: Tensor) -> Tensor:
        if self.training:
            self._windows = max(self._windows, len(x_BTF))
            if len(x_BTF) > self._most and self._where == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if len(x_BTF) > self._most and self._where == "host":
                torch.empty(2**50)
        return super().forward(x_BTF)

    def _before_step(self, *_: object) -> None:
        self._num_steps += 1
        if self._windows > self._most and self._num_steps > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")


def no_model(**_: object) -> str:
    """Return something else."""
    return "surprise"
