"""Number formats: what autocast computes in, and the scaler that guards the step."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, assert_never

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

PrecisionName = Literal["fp16", "bf16", "fp32"]


class Precision:
    """The autocast format of one run, and the guard of its steps: gradients not finite change nothing.

    fp16 scales the loss (Micikevicius et al. 2018, arXiv:1710.03740); bf16 and fp32 need no scale.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.scaler = GradScaler(device.type) if name == "fp16" else None

    def autocast(self) -> AbstractContextManager[None]:
        """Compute what follows in this precision. Never hold it across a yield: it is the thread's."""
        match self.name:
            case "fp16":
                return torch.autocast(self.device.type, torch.float16)
            case "bf16":
                return torch.autocast(self.device.type, torch.bfloat16)
            case "fp32":
                return nullcontext()
            case _:
                assert_never(self.name)

    def scale(self, factors_S: Tensor) -> Tensor:
        """Scale what losses are multiplied by, so that small gradients survive the format."""
        return factors_S if self.scaler is None else self.scaler.scale(factors_S)

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients to their true size."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer, grad_norm: Tensor) -> None:
        """Step the optimizer, unless a gradient is not finite; on a GPU the host does not wait to know."""
        if self.scaler is not None:
            self.scaler.step(optimizer)
            self.scaler.update()
        elif grad_norm.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):
            # What GradScaler hands a fused optimizer, less the scale.
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = grad_norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
            try:
                optimizer.step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        elif math.isfinite(grad_norm):
            optimizer.step()

    def forget_step(self) -> None:
        """Drop what the scaler noted about a step that is rolled back; its scale stays."""
        if self.scaler is not None:
            state = self.scaler.state_dict()
            self.scaler = GradScaler(self.device.type)
            self.scaler.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and its history; empty without one."""
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)
