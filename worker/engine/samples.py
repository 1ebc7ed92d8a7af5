"""What the engine asks of a split: its samples, in an order that never changes, from any position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from worker.stream.batch import Batch


class Samples(Protocol):
    """The samples of one split."""

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Generator[Batch, None, None]:
        """Yield consecutive samples of an epoch, `size` at a time, the last batch short.

        skip: samples left out at the start; epoch: from 1; a shuffled split has another order in each.
        """
        ...


@dataclass(frozen=True, slots=True)
class Splits:
    """The samples of a job: to train on, to choose the best epoch by, and to judge that choice by."""

    train: Samples
    val: Samples
    test: Samples | None = None
