"""What is checked when rows are read for the first time: features finite, labels within 0..K-1.

Shapes: R rows of a block, E elements of a row, U units of the layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from app.datasets.errors import LabelOutOfRange
from app.datasets.schema import Features
from worker.stream.block import Block
from worker.stream.decode import Origin
from worker.stream.errors import NonFinite
from worker.stream.layout import Extent

Used = Callable[[Extent, Block], NDArray[np.bool_]]
"""Which rows of a block some window of the part holds, bool [R]."""


class Checks:
    """Checks each unit once, over all passes; only rows that a window holds can fail."""

    def __init__(
        self,
        features: Features,
        num_classes: int,
        num_units: int,
        used: Used,
        *,
        verify_checksums: bool,
        zero_non_finite: bool,
    ) -> None:
        """zero_non_finite: a feature that is not finite is no error, and read as 0."""
        self._features, self._num_classes, self._used = features, num_classes, used
        self._zero_non_finite = zero_non_finite
        self._has_non_finite_U = np.zeros(num_units, bool)
        self._seen_U = np.zeros(num_units, bool)
        self._verify_checksums = verify_checksums

    def wants_checksums(self, units: slice) -> bool:
        """Tell whether the page checksums of some of these units are still to be verified."""
        return self._verify_checksums and not bool(self._seen_U[units].all())

    def is_done(self, first: int, last: int) -> bool:
        """Tell whether units first .. last - 1 were read and checked before."""
        return bool(self._seen_U[first:last].all())

    def checked(self, extent: Extent, block: Block, origin: Origin) -> Block:
        """Return the block as it may be used.

        Raises NonFinite or LabelOutOfRange for the first such row, the first time the extent is read.
        """
        first, last = extent
        if self.is_done(first, last):
            return _zeroed(block) if self._has_non_finite_U[first:last].any() else block
        # A sum is NaN or infinite if any element is, but also when it overflows: then look at each.
        if not torch.isfinite(block.rows_RF.sum()):
            is_finite_R = torch.isfinite(block.rows_RF).flatten(1).all(1).numpy()
            if self._zero_non_finite and not is_finite_R.all():
                self._has_non_finite_U[first:last] = True
                block = _zeroed(block)
            else:
                self._raise_first(extent, block, ~is_finite_R, origin, self._non_finite)
        low, high = torch.aminmax(block.labels_R)
        if int(low) < 0 or int(high) >= self._num_classes:
            is_bad_R = ((block.labels_R < 0) | (block.labels_R >= self._num_classes)).numpy()
            self._raise_first(extent, block, is_bad_R, origin, self._bad_label)
        self._seen_U[first:last] = True
        return block

    def _raise_first(
        self,
        extent: Extent,
        block: Block,
        is_bad_R: NDArray[np.bool_],
        origin: Origin,
        error: Callable[[Block, int, Origin], Exception],
    ) -> None:
        bad = np.flatnonzero(is_bad_R & self._used(extent, block))
        if len(bad):
            raise error(block, int(bad[0]), origin)

    def _non_finite(self, block: Block, row: int, origin: Origin) -> NonFinite:
        features = self._features
        values_E = block.rows_RF[row].flatten()
        element = int((~torch.isfinite(values_E)).nonzero()[0])
        value = float(values_E[element])
        if features.layout == "columns":
            where = f"column {features.columns[element]!r}"
        else:
            place = [int(i) for i in np.unravel_index(element, features.shape)]
            where = f"column {features.columns[0]!r}, element {place}"
        return NonFinite(
            f"{origin.at(row)}: {where} is {value}, not a finite float32",
            'Repair the row, or leave such rows out with data.non_finite = "skip".',
        )

    def _bad_label(self, block: Block, row: int, origin: Origin) -> LabelOutOfRange:
        found = int(block.labels_R[row])
        return LabelOutOfRange(
            f"{origin.at(row)}: label is {'missing' if found == -1 else found},"
            f" allowed are 0..{self._num_classes - 1}",
            "Give every row one of the classes.",
        )


def _zeroed(block: Block) -> Block:
    """Copy the block with 0 for every feature that is not finite: its rows may be the file's own memory."""
    rows_RF = torch.where(torch.isfinite(block.rows_RF), block.rows_RF, 0.0)
    return replace(block, rows_RF=rows_RF)
