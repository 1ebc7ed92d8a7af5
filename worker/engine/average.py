"""A moving average of the weights, evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of the weights over applied steps (Polyak, Juditsky 1992; Tarvainen,
    Valpola 2017, arXiv:1703.01780). It begins at the initial weights.
    """

    def __init__(self, decay: float, parameters: Sequence[nn.Parameter]) -> None:
        self.weights: list[Tensor] = [p.detach().clone() for p in parameters]
        self._decay = decay
        self._parameters = parameters

    @torch.no_grad()
    def advance(self) -> None:
        """Take in the weights as they are."""
        torch._foreach_lerp_(self.weights, [p.detach() for p in self._parameters], 1.0 - self._decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew at the weights as they are."""
        for weight, parameter in zip(self.weights, self._parameters, strict=True):
            weight.copy_(parameter)

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Let the model have the averaged weights for a while. Never hold it across a yield."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self._parameters):
            parameter.data, self.weights[index] = self.weights[index], parameter.data
