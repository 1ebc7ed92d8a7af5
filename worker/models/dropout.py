"""Dropout (Srivastava et al. 2014), with masks that need not depend on how a step is cut.

Shapes: B samples of a micro-batch, N elements of the tensor dropped from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195), as signed 64-bit integers that wrap.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST_FACTOR = 0xBF58476D1CE4E5B9 - 2**64
SECOND_FACTOR = 0x94D049BB133111EB - 2**64


class Masks:
    """Dropout masks of whole effective batches, as a function of (seed, step, layer), sliced by position.

    SplitMix64 gives its n-th number without those before it: a micro-batch draws its own slice, and it is
    the same on every device. A layer is a call of dropout, counted from the start of the head.
    """

    def __init__(self, seed: int) -> None:
        self.layer = 0
        self._seed = seed
        self._step = self._first = 0
        self._count = 1

    def begin(self, step: int, first: int, count: int) -> None:
        """Begin the head of a micro-batch: samples first .. first + count - 1 of a step."""
        self.layer = 0
        self._step, self._first, self._count = step, first, count

    def keep(self, shape: torch.Size, p: float, device: torch.device) -> Tensor:
        """Draw the next layer's mask: True where an element is kept. Samples must come first in memory."""
        num_elements = shape.numel()
        first = self._first * (num_elements // self._count)
        key = _mixed(_mixed(_mixed(self._seed) + self._step) + self.layer)
        self.layer += 1
        number_N = torch.arange(first + 1, first + num_elements + 1, device=device)
        # The upper 32 bits, signed: uniform in -2^31 .. 2^31 - 1.
        upper_N = _mixed_tensor(number_N.mul_(GAMMA).add_(_signed(key))) >> 32
        return (upper_N >= round(p * 2**32) - 2**31).view(shape)


class Dropout(nn.Module):
    """Zero each element with probability p in training, and scale the others by 1 / (1 - p).

    For use in a model's `head`, on tensors whose first dimension is the samples (or samples x rows). With
    `masks`, what is dropped is theirs to say; without, it is drawn from torch's global random state.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.masks: Masks | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if self.masks is None:
            return F.dropout(x, self.p)
        return self._masked(x, self.masks)

    def _masked(self, x: Tensor, masks: Masks) -> Tensor:
        keep = masks.keep(x.shape, self.p, x.device)
        return x * keep.to(x.dtype).mul_(1.0 / (1.0 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"

    # nn.Module.__call__ is typed Any.
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        dropped: Tensor = super().__call__(*args, **kwargs)
        return dropped


def draw_from(model: nn.Module, masks: Masks | None) -> None:
    """Let every dropout of a model draw from `masks`; None = from torch's global random state."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.masks = masks


def _mixed(number: int) -> int:
    number = (number + GAMMA) & (2**64 - 1)
    number = (number ^ (number >> 30)) * (FIRST_FACTOR & (2**64 - 1)) & (2**64 - 1)
    number = (number ^ (number >> 27)) * (SECOND_FACTOR & (2**64 - 1)) & (2**64 - 1)
    return number ^ (number >> 31)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _mixed_tensor(number_N: Tensor) -> Tensor:
    # Shifts of signed numbers copy the sign: masked away, they are those of unsigned ones.
    number_N ^= (number_N >> 30).bitwise_and_(2**34 - 1)
    number_N *= FIRST_FACTOR
    number_N ^= (number_N >> 27).bitwise_and_(2**37 - 1)
    number_N *= SECOND_FACTOR
    number_N ^= (number_N >> 31).bitwise_and_(2**33 - 1)
    return number_N
