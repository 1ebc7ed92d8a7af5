"""Number formats: what autocast computes in, and the scaler that guards the step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, assert_never

import torch
from torch.amp.grad_scaler import GradScaler

PrecisionName = Literal["fp16", "bf16", "fp32"]

NEVER = 2**31 - 1


class Precision:
    """The autocast format of one run and its gradient scaler.

    fp16 scales the loss (Micikevicius et al. 2018, arXiv:1710.03740). bf16 and fp32 need no scale and have
    one of 1, so that all have the same guard: a step whose gradients are not finite changes nothing.
    """

    def __init__(self, name: PrecisionName, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.scaler = self._new_scaler()

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

    def forget_step(self) -> None:
        """Drop what the scaler noted about a step that is rolled back; its scale stays."""
        state = self.scaler.state_dict()
        self.scaler = self._new_scaler()
        self.scaler.load_state_dict(state)

    def _new_scaler(self) -> GradScaler:
        if self.name == "fp16":
            return GradScaler(self.device.type)
        return GradScaler(self.device.type, init_scale=1.0, growth_interval=NEVER)
