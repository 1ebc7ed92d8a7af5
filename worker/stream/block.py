"""A block: consecutive rows of a dataset, decoded.

Shapes: R rows of the block, F... the shape of one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """R consecutive rows of the dataset; the first is row `start` of all files.

    rows_RF: float32 [R, *shape], may be Arrow memory: never written to; labels_R: int64 [R].
    times_R, groups_R: int64 [R], only of a grouped dataset (else empty).
    """

    start: int
    rows_RF: Tensor
    labels_R: Tensor
    times_R: NDArray[np.int64]
    groups_R: NDArray[np.int64]

    def __len__(self) -> int:
        return self.labels_R.shape[0]

    @property
    def stop(self) -> int:
        return self.start + len(self)
