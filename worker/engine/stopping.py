"""When to stop, and which epoch was best."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class Stopping:
    """Early stopping on the validation loss (Prechelt 1998): patience in epochs, null = never.

    Any lower loss is a new best; only one lower by more than `min_delta` renews the patience. nan is
    no better.
    """

    patience: int | None
    min_delta: float = 0.0
    best_loss: float = math.inf
    reference_loss: float = math.inf
    stale_epochs: int = 0

    def update(self, loss: float) -> bool:
        """Take in an epoch's validation loss; say whether it is the best so far."""
        if loss < self.reference_loss - self.min_delta:
            self.reference_loss = loss
            self.stale_epochs = 0
        else:
            self.stale_epochs += 1
        if loss < self.best_loss:
            self.best_loss = loss
            return True
        return False

    @property
    def is_due(self) -> bool:
        return self.patience is not None and self.stale_epochs >= self.patience
