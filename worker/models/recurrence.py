"""Recurrent layers over time, in every precision, with dropout between them.

Shapes: B windows, T rows, D of a step's input, H of its state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker.models.dropout import Dropout

Cells = type[nn.LSTM] | type[nn.GRU]


class Recurrence(nn.Module):
    """`layers` of LSTM or GRU; [B, T, D] -> the state of the last layer after the last step, [B, H]."""

    def __init__(self, cells: Cells, size: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        # One module a layer: dropout between the layers of one module draws from elsewhere on a GPU.
        self.layers = nn.ModuleList(
            cells(size if layer == 0 else hidden, hidden, batch_first=True) for layer in range(layers)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        first, *others = self.layers
        x_BTH = _run(first, x_BTD)
        for layer in others:
            x_BTH = _run(layer, self.dropout(x_BTH))
        return self.dropout(x_BTH[:, -1])


def _run(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    if x_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # oneDNN has no LSTM in fp16; a recurrence loses most by rounding, too.
        with torch.autocast("cpu", enabled=False):
            return _outputs(layer, x_BTD.to(next(layer.parameters()).dtype))
    return _outputs(layer, x_BTD)


def _outputs(layer: nn.Module, x_BTD: Tensor) -> Tensor:
    x_BTH: Tensor = layer(x_BTD)[0]
    return x_BTH
