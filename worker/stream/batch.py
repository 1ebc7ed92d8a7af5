"""A batch: a block of rows and where its windows start. Windows are views, not copies.

Shapes: R rows of the block, B windows, T rows in a window, F... the shape of one row, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.stream.windows import union_rows


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples over R rows. The rows are never written to.

    rows_RF: float32 [R, *shape]; starts_B: int64 [B], first row of each window, on the CPU;
    labels_B: int64 [B], on the CPU. Window b is rows starts[b] .. starts[b] + T - 1.
    is_dense: starts are 0, 1, ..., B-1 and R = B + T - 1, so windows are one strided view.
    """

    rows_RF: Tensor
    starts_B: Tensor
    labels_B: Tensor
    window: int
    is_dense: bool

    def __len__(self) -> int:
        return self.labels_B.shape[0]

    def narrow(self, first: int, count: int) -> Batch:
        """Return samples first .. first + count - 1 over the rows they need.

        A view, but for batches of several groups: there the rows may lie apart, and are copied.
        """
        labels_B = self.labels_B.narrow(0, first, count)
        if self.is_dense:
            rows_RF = self.rows_RF.narrow(0, first, count + self.window - 1)
            return Batch(rows_RF, self.starts_B.narrow(0, 0, count), labels_B, self.window, True)
        starts_B = self.starts_B.narrow(0, first, count)
        rows_R, places_B = union_rows(starts_B.numpy(), self.window)
        low, num_rows = int(rows_R[0]), len(rows_R)
        if rows_R[-1] - low + 1 == num_rows:
            rows_RF = self.rows_RF.narrow(0, low, num_rows)
        else:
            rows_RF = self.rows_RF.index_select(0, torch.from_numpy(rows_R).to(self.rows_RF.device))
        is_dense = num_rows == count + self.window - 1 and bool((places_B[1:] > places_B[:-1]).all())
        return Batch(rows_RF, torch.from_numpy(places_B), labels_B, self.window, is_dense)

    def windows_BTF(self) -> Tensor:
        """Return the windows as float32 [B, T, *shape]: a strided view when dense, else a copy."""
        rows_RF = self.rows_RF
        if self.is_dense:
            shape = (len(self), self.window, *rows_RF.shape[1:])
            return rows_RF.as_strided(shape, (rows_RF.stride(0), *rows_RF.stride()))
        rows_BT = self.starts_B.unsqueeze(1) + torch.arange(self.window)
        return rows_RF[rows_BT.to(rows_RF.device)]
