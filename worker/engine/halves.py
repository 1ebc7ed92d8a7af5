"""Forward and backward of a model's two halves: rows encoded once, and the windows that share them.

Shapes: R rows, B samples of a micro-batch, T rows in a window, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from worker.engine.passes import backward
from worker.engine.run import Run
from worker.models.base import gather_windows, scatter_windows
from worker.stream.batch import Batch


class Halves:
    """The two halves of a run's model, repeated as recorded where there is a recording."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # A forward pass within the backward one is not worth a recording: there, memory is what is short.
        self._graphs = run.graphs if run.graphs.is_on and not run.is_recomputing else None

    def encode(self, rows_RF: Tensor) -> tuple[Tensor, Callable[[Tensor], None] | None]:
        """Encode rows: the embeddings [R, D], detached, and what walks back from their gradient.

        None when there is nothing behind them: the encoder of a custom model may have no weights.
        """
        if self._graphs is not None:
            return self._graphs.encode(self._encode, backward, rows_RF)
        embedded_RD = self._encode(rows_RF)
        return embedded_RD.detach(), partial(backward, embedded_RD) if embedded_RD.requires_grad else None

    def classify(self, windows_BTD: Tensor, labels_B: Tensor, factors_B: Tensor) -> tuple[Tensor, ...]:
        """Run a micro-batch forward and backward: losses [B], logits [B, K] and, when the windows require
        one, their gradient [B, T, D], which stands until the next call.
        """
        # The last micro-batch of a step may be smaller: it comes too seldom.
        if self._graphs is None or len(labels_B) < self.run.micro_batch:
            return self._classify(windows_BTD, labels_B, factors_B)
        losses_B, logits_BK, *gradient = self._graphs.classify(
            self._classify, windows_BTD, labels_B, factors_B
        )
        return losses_B.clone(), logits_BK.clone(), *gradient

    def _encode(self, rows_RF: Tensor) -> Tensor:
        with self.run.precision.autocast():
            embedded_RD = self.run.passes.encode(rows_RF)
        # Full precision: up to T windows add their gradients to one row.
        return embedded_RD.to(self.run.dtype)

    def _classify(self, windows_BTD: Tensor, labels_B: Tensor, factors_B: Tensor) -> tuple[Tensor, ...]:
        windows_BTD = windows_BTD.detach().requires_grad_(windows_BTD.requires_grad)
        with self.run.precision.autocast():
            logits_BK = self.run.passes.head(windows_BTD)
        losses_B = self.run.loss.per_sample(logits_BK, labels_B)
        backward(losses_B, factors_B)
        gradient = () if windows_BTD.grad is None else (windows_BTD.grad,)
        return losses_B.detach(), logits_BK.detach(), *gradient


class Shared:
    """Encoded rows that the windows of several micro-batches share, and the gradients these add to them.

    The graph behind the rows is walked once, when every micro-batch has been.
    """

    def __init__(self, halves: Halves, rows_RF: Tensor, part: Batch) -> None:
        self._halves = halves
        self._part = part
        self._embedded_RD, self._walk_back = halves.encode(rows_RF)
        self._gradient_RD = torch.zeros_like(self._embedded_RD) if self._walk_back else None
        self._starts_B = part.starts_B if part.is_dense else halves.run.upload(part.starts_B)

    def train(self, first: int, labels_B: Tensor, factors_B: Tensor) -> tuple[Tensor, Tensor]:
        """Run the windows from `first` on forward and backward: losses [B], logits [B, K]."""
        count, window, is_dense = len(labels_B), self._part.window, self._part.is_dense
        low = first if is_dense else 0
        num_rows = count + window - 1 if is_dense else self._embedded_RD.shape[0]
        starts_B = self._starts_B[first : first + count]
        windows_BTD = gather_windows(self._embedded_RD.narrow(0, low, num_rows), starts_B, window, is_dense)
        # Leaves of their own, and their rows' gradient by hand: half the nodes of a graph to walk back.
        windows_BTD.requires_grad_(self._walk_back is not None)
        losses_B, logits_BK, *gradients = self._halves.classify(windows_BTD, labels_B, factors_B)
        for gradient_BTD in gradients:
            assert self._gradient_RD is not None
            rows_RD = scatter_windows(gradient_BTD, starts_B, num_rows, is_dense)
            self._gradient_RD.narrow(0, low, num_rows).add_(rows_RD)
        return losses_B, logits_BK

    def backward(self) -> None:
        """Walk back through what encoded the rows."""
        if self._walk_back is not None:
            assert self._gradient_RD is not None
            self._walk_back(self._gradient_RD)
