"""The learning rate of each optimizer step.

A step is counted from 1; its learning rate is a function of its number alone, but for plateau, which also
remembers the validation losses it was told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

from app.jobs.config import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    OneCycleConfig,
    PlateauConfig,
    ScheduleConfig,
)

Factor = Callable[[float], float]


class Schedule:
    """A learning rate that rises linearly from 0 over the warmup, then falls as its factor says.

    total_steps: of the whole training; factor: what lr is multiplied by, of the progress 0..1 behind the
    warmup. Progress 0 is the first step at full rate; 1 would be the step behind the last.
    """

    def __init__(self, lr: float, warmup_steps: int, total_steps: int, factor: Factor) -> None:
        self._lr, self._warmup_steps, self._factor = lr, warmup_steps, factor
        self._first = max(1, warmup_steps)  # step at full rate
        self._span = max(1, total_steps - self._first + 1)

    def at(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, from 1."""
        if step < self._warmup_steps:
            return self._lr * step / self._warmup_steps
        return self._lr * self._factor(min(1.0, (step - self._first) / self._span))

    def validated(self, loss: float) -> None:
        """Take note of a validation loss, once per validation."""

    def state_dict(self) -> dict[str, Any]:
        """What `at` depends on besides the step: JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""


class OneCycle(Schedule):
    """Up to lr and down again, each by half a cosine (Smith, Topin 2017, arXiv:1708.07120).

    The numbers of torch.optim.lr_scheduler.OneCycleLR with two phases, momentum left alone.
    """

    def __init__(self, config: OneCycleConfig, lr: float, total_steps: int) -> None:
        self._lr = lr
        self._initial = lr / config.div_factor
        self._final = self._initial / config.final_div_factor
        self._peak = config.warmup_steps - 1 if config.warmup_steps else config.pct_start * total_steps - 1
        self._last = total_steps - 1

    def at(self, step: int) -> float:
        index = step - 1
        if index <= self._peak and self._peak > 0:
            return _between(self._initial, self._lr, index / self._peak)
        if self._last <= self._peak:
            return self._lr
        return _between(self._lr, self._final, (index - self._peak) / (self._last - self._peak))


class Plateau(Schedule):
    """A learning rate that falls by `factor` once more than `patience` validations in a row were no better.

    The rules of torch.optim.lr_scheduler.ReduceLROnPlateau with a relative threshold.
    """

    def __init__(self, config: PlateauConfig, lr: float) -> None:
        super().__init__(lr, config.warmup_steps, 1, lambda _: self._ratio)
        self._config = config
        self._ratio = 1.0
        self._best_loss = math.inf
        self._stale = 0  # validations since the best, or since the last fall

    def validated(self, loss: float) -> None:
        if loss < self._best_loss * (1.0 - self._config.threshold):
            self._best_loss, self._stale = loss, 0
        else:
            self._stale += 1
        if self._stale > self._config.patience:
            self._ratio = max(self._ratio * self._config.factor, self._config.min_ratio)
            self._stale = 0

    def state_dict(self) -> dict[str, Any]:
        # JSON has no infinity.
        best_loss = self._best_loss if math.isfinite(self._best_loss) else None
        return {"ratio": self._ratio, "best_loss": best_loss, "stale": self._stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._ratio, self._stale = state["ratio"], state["stale"]
        self._best_loss = math.inf if state["best_loss"] is None else state["best_loss"]


def build_schedule(config: ScheduleConfig, lr: float, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """Build the schedule a config names. steps_per_epoch: optimizer steps, as planned."""
    total_steps = steps_per_epoch * epochs
    match config:
        case ConstantConfig():
            return Schedule(lr, config.warmup_steps, total_steps, lambda _: 1.0)
        case LinearConfig():
            final = config.final_ratio
            return Schedule(lr, config.warmup_steps, total_steps, lambda done: 1.0 + (final - 1.0) * done)
        case CosineConfig():
            final = config.final_ratio
            return Schedule(lr, config.warmup_steps, total_steps, lambda done: _between(1.0, final, done))
        case OneCycleConfig():
            return OneCycle(config, lr, total_steps)
        case PlateauConfig():
            return Plateau(config, lr)
        case _:
            assert_never(config)


def _between(start: float, end: float, done: float) -> float:
    """Go from start to end by half a cosine; done: 0..1."""
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * min(1.0, done)))
