"""Figures of the features of all rows, and what in them would hurt training.

Shapes: N rows of a batch and group, E elements of a row.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from app.datasets.features import Features
from app.datasets.moments import FLOAT16_MAX, FLOAT32_MAX, Moments
from app.datasets.scan import Rows
from app.datasets.values import element_name
from app.errors import Problem, shown
from app.jobs.config import DataConfig

ELEMENTS_SHOWN = 64
# Features this far apart in size share one learning rate badly.
SCALES_APART = 1e4


class FeatureValues:
    """Figures of every element of a row, and what is worth a warning about them."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._moments = Moments(prod(features.shape))
        self._first_bad = ""

    def add(self, rows: Rows) -> None:
        """Count the features of some rows."""
        assert rows.features_NE is not None
        num_bad = int(self._moments.num_bad.sum())
        self._moments.add(rows.features_NE)
        if not self._first_bad and int(self._moments.num_bad.sum()) > num_bad:
            values = rows.features_NE.astype(np.float64)
            row, element = (int(i) for i in np.argwhere(~(np.abs(values) <= FLOAT32_MAX))[0])
            self._first_bad = (
                f"{shown(rows.file)}, row {int(rows.at_N[row])}: {element_name(self._features, element)} is"
                f" {values[row, element]:g}"
            )

    def warnings(self, data: DataConfig) -> list[tuple[str, str]]:
        """Say what training would suffer from."""
        return [one for one in (self._fp16(), self._constant(), self._scales(data)) if one is not None]

    def faults(self, data: DataConfig) -> list[Problem]:
        """Say what would end a job, under its policy for values that are not finite."""
        total = int(self._moments.num_bad.sum())
        if not total or data.non_finite != "error":
            return []
        worst = np.argsort(-self._moments.num_bad, kind="stable")[:3]
        counts = ", ".join(
            f"{element_name(self._features, int(e))} {int(self._moments.num_bad[e]):,}"
            for e in worst
            if self._moments.num_bad[e]
        )
        message = f"{self._first_bad}, not a finite float32; {total:,} values are not: {counts}."
        hint = 'Repair them, or set data.non_finite to "skip" or "zero".'
        return [Problem("/data/non_finite", "non_finite", message, hint)]

    def view(self) -> dict[str, Any]:
        """Render the figures; of very many elements the first."""
        moments = self._moments
        has_any = moments.count > 0
        low, high = np.where(has_any, moments.low, 0), np.where(has_any, moments.high, 0)
        return {
            "non_finite": int(moments.num_bad.sum()),
            "first_non_finite": self._first_bad or None,
            "beyond_float16": int(moments.num_large.sum()),
            "constant": int(np.count_nonzero(moments.low == moments.high)),
            "num_elements": len(moments.count),
            "elements": [
                {
                    "name": element_name(self._features, e),
                    "mean": float(moments.mean[e]),
                    "deviation": float(moments.deviation[e]),
                    "min": float(low[e]),
                    "max": float(high[e]),
                    "non_finite": int(moments.num_bad[e]),
                }
                for e in range(min(len(moments.count), ELEMENTS_SHOWN))
            ],
        }

    def _fp16(self) -> tuple[str, str] | None:
        large = np.flatnonzero(self._moments.num_large)
        if not large.size:
            return None
        sizes = np.maximum(np.abs(self._moments.low), np.abs(self._moments.high))
        at = int(large[np.argmax(sizes[large])])
        return (
            "beyond_float16",
            f"{large.size} feature(s) hold values beyond {FLOAT16_MAX:g}, the largest"
            f" {element_name(self._features, at)} with {sizes[at]:.4g}: they are infinite in fp16. Rescale"
            ' them, or set data.normalize, or precision to "bf16" or "fp32".',
        )

    def _constant(self) -> tuple[str, str] | None:
        constant = np.flatnonzero(self._moments.low == self._moments.high)
        if not constant.size:
            return None
        names = ", ".join(element_name(self._features, int(e)) for e in constant[:3])
        more = f" and {constant.size - 3} more" if constant.size > 3 else ""
        return (
            "constant_features",
            f"{constant.size} of {len(self._moments.count)} features never change: {names}{more}.",
        )

    def _scales(self, data: DataConfig) -> tuple[str, str] | None:
        deviation = self._moments.deviation
        moving = np.flatnonzero(self._moments.low < self._moments.high)
        if data.normalize != "none" or moving.size < 2:
            return None
        least, most = int(moving[deviation[moving].argmin()]), int(moving[deviation[moving].argmax()])
        # Elements of a tensor that are nearly always 0 vary little; that is no matter of units.
        if self._features.layout != "columns" or deviation[most] < SCALES_APART * deviation[least]:
            return None
        return (
            "scales_differ",
            f"{element_name(self._features, most)} varies by {deviation[most]:.3g},"
            f" {element_name(self._features, least)} by {deviation[least]:.3g}: the larger drowns the"
            ' smaller. Set data.normalize to "standard".',
        )
