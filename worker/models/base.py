"""What every model is: rows encoded one by one, then windows of encoded rows classified.

Shapes: B windows, T rows in a window, R rows, F... the shape of one row, D embedding, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_unfold_backward = torch.ops.aten.unfold_backward.default
_embedding_backward = torch.ops.aten.embedding_dense_backward.default


class SequenceModel(nn.Module, ABC):
    """Classify windows of rows; each row is encoded once, however many windows share it.

    `encode` sees a row alone: no dropout, no batch statistics, so that its output does not depend on
    which windows, or how often, the row is in. Dropout lives in `head`, one mask per window.
    """

    def __init__(self, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.window = window
        self.shape = shape
        self.num_classes = num_classes

    @abstractmethod
    def encode(self, rows_RF: Tensor) -> Tensor:
        """Embed each row by itself: [R, *shape] -> [R, D]."""

    @abstractmethod
    def head(self, embedded_BTD: Tensor) -> Tensor:
        """Classify windows of embedded rows: [B, T, D], contiguous -> logits [B, K]."""

    def forward(self, x_BTF: Tensor) -> Tensor:
        """Classify windows given in full: [B, T, *shape] -> logits [B, K]."""
        embedded_RD = self.encode(x_BTF.flatten(0, 1))
        return self.head(embedded_RD.view(*x_BTF.shape[:2], -1))

    def forward_rows(self, rows_RF: Tensor, starts_B: Tensor, is_dense: bool) -> Tensor:
        """Classify the windows that start at `starts_B` of a block of rows: logits [B, K].

        The same numbers as `forward` on the windows copied out, with each row encoded once.
        is_dense: starts are 0, 1, ..., B-1 and R = B + T - 1.
        """
        return self.head(gather_windows(self.encode(rows_RF), starts_B, self.window, is_dense))

    # nn.Module.__call__ is typed Any.
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        logits: Tensor = super().__call__(*args, **kwargs)
        return logits


def gather_windows(embedded_RD: Tensor, starts_B: Tensor, window: int, is_dense: bool) -> Tensor:
    """Lay embedded rows out as windows [B, T, D], contiguous: by a strided view when dense."""
    if is_dense:
        # Contiguous, since random numbers fill memory in its order: else a window's dropout mask would
        # depend on the layout.
        num_rows, size = embedded_RD.shape
        row, column = embedded_RD.stride()
        view_BTD = embedded_RD.as_strided((num_rows - window + 1, window, size), (row, row, column))
        return view_BTD.contiguous()
    index_BT = starts_B.unsqueeze(1) + torch.arange(window, device=starts_B.device)
    # The backward of `embedding` sums in a fixed order on CUDA, that of `index_select` does not.
    return F.embedding(index_BT.to(embedded_RD.device, non_blocking=True), embedded_RD)


def batch_layers(model: nn.Module) -> list[str]:
    """Name the layers whose output for a sample depends on the samples beside it: batch statistics."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False)
    ]


def scatter_windows(gradient_BTD: Tensor, starts_B: Tensor, num_rows: int, is_dense: bool) -> Tensor:
    """Add up, for each row, what the windows that hold it say: the backward of `gather_windows`, [R, D]."""
    window, size = gradient_BTD.shape[1:]
    if is_dense:
        rows_RD: Tensor = _unfold_backward(gradient_BTD.transpose(1, 2), (num_rows, size), 0, window, 1)
        return rows_RD
    index_BT = starts_B.unsqueeze(1) + torch.arange(window, device=starts_B.device)
    index_BT = index_BT.to(gradient_BTD.device, non_blocking=True)
    rows_RD = _embedding_backward(gradient_BTD, index_BT, num_rows, -1, False)
    return rows_RD


def num_parameters(model: nn.Module) -> int:
    """Count what the optimizer trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
