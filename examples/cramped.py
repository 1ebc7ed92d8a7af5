"""A model for half_the_memory.py that pretends to run on a GPU with too little memory."""

from __future__ import annotations

import torch
from torch import Tensor

from app.jobs.config import VivitConfig
from worker.models.vivit import Vivit


class Cramped(Vivit):
    """A small vivit with room for `room` windows at once in training.

    There is no GPU here to fill: above that the model raises what the allocator of a full GPU raises.
    """

    def __init__(self, *, room: int, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        config = VivitConfig(d_model=16, heads=2, layers=2)
        super().__init__(config, window=window, shape=shape, num_classes=num_classes)
        self._room = room

    def head(self, embedded_BTD: Tensor) -> Tensor:
        if self.training and len(embedded_BTD) > self._room:
            raise torch.OutOfMemoryError(f"no room for {len(embedded_BTD)} windows (pretended by Cramped)")
        return super().head(embedded_BTD)
