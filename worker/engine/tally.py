"""Running sums of losses and outcomes, kept on the device and read seldom.

Shapes: S samples of a step, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Confusion = list[list[int]]

# Steps whose outcomes may wait unsummed. A constant: where sums are cut decides their last bit.
MAX_PENDING = 64


@dataclass(frozen=True, slots=True)
class Counted:
    """What a model made of some samples, on the device: losses [S], predicted classes [S], labels [S]."""

    losses_S: Tensor
    predictions_S: Tensor
    labels_S: Tensor

    def __len__(self) -> int:
        return self.labels_S.shape[0]

    def narrow(self, first: int, last: int) -> Counted:
        """Take samples first .. last - 1, as views."""
        return Counted(self.losses_S[first:last], self.predictions_S[first:last], self.labels_S[first:last])


@dataclass(frozen=True, slots=True)
class Sums:
    """Summed weighted losses, and the confusion counts: rows are labels, columns predictions."""

    loss_sum: float
    confusion: Confusion

    @classmethod
    def zero(cls, num_classes: int) -> Sums:
        return cls(0.0, [[0] * num_classes for _ in range(num_classes)])

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.loss_sum + other.loss_sum,
            [
                [a + b for a, b in zip(mine, theirs, strict=True)]
                for mine, theirs in zip(self.confusion, other.confusion, strict=True)
            ],
        )

    @property
    def support(self) -> list[int]:
        return [sum(row) for row in self.confusion]

    @property
    def count(self) -> int:
        return sum(self.support)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions; nan without samples."""
        hits = sum(row[k] for k, row in enumerate(self.confusion))
        return hits / self.count if self.count else float("nan")


class Tally:
    """Sums over an epoch. `add` costs no sync; `read` is one."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.total = Sums.zero(num_classes)
        self._num_classes = num_classes
        # One tensor, one read: the loss sum, then K x K counts (exact in float64 below 2^53).
        self._unread = torch.zeros(1 + num_classes**2, dtype=torch.float64, device=device)
        self._pending: list[Counted] = []

    def add(self, counted: Counted) -> None:
        """Count samples in."""
        if len(counted):
            self._pending.append(counted)
        if len(self._pending) >= MAX_PENDING:
            self._fold()

    def read(self) -> Sums:
        """Return the sums since the last read, and add them to the total."""
        self._fold()
        loss_sum, *counts = self._unread.tolist()
        self._unread.zero_()
        k = self._num_classes
        sums = Sums(loss_sum, [[int(n) for n in counts[i * k : (i + 1) * k]] for i in range(k)])
        self.total = self.total + sums
        return sums

    def state(self) -> dict[str, Any]:
        """Copy everything to the CPU as plain values and tensors; nothing is summed by it."""
        return {
            "loss_sum": self.total.loss_sum,
            "confusion": [list(row) for row in self.total.confusion],
            "unread": self._unread.to("cpu", copy=True),
            "losses": [c.losses_S.to("cpu", copy=True) for c in self._pending],
            "predictions": [c.predictions_S.to("cpu", copy=True) for c in self._pending],
            "labels": [c.labels_S.to("cpu", copy=True) for c in self._pending],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the tally whose `state` this is."""
        device = self._unread.device
        self.total = Sums(state["loss_sum"], state["confusion"])
        self._unread.copy_(state["unread"])
        # As many as they were: their number decides when they are summed.
        self._pending = [
            Counted(losses_S.to(device), predictions_S.to(device), labels_S.to(device))
            for losses_S, predictions_S, labels_S in zip(
                state["losses"], state["predictions"], state["labels"], strict=True
            )
        ]

    def _fold(self) -> None:
        if not self._pending:
            return
        losses_S = torch.cat([c.losses_S for c in self._pending])
        predictions_S = torch.cat([c.predictions_S for c in self._pending])
        labels_S = torch.cat([c.labels_S for c in self._pending])
        self._pending.clear()
        self._unread[0] += losses_S.sum(dtype=torch.float64)
        # Not bincount: on CUDA it waits for the device.
        cells_S = labels_S * self._num_classes + predictions_S + 1
        self._unread.index_add_(0, cells_S, self._unread.new_ones(()).expand_as(cells_S))
