"""Normalisation inside the model, so that inference needs nothing besides the checkpoint.

Shapes: R rows, F... the shape of one row, B windows, T rows in a window, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from worker.models.base import SequenceModel


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """What is subtracted from a row's features and what they are divided by, float64 [*shape]; scale > 0."""

    center_F: Tensor
    scale_F: Tensor


class Normalizer(nn.Module):
    """Shift and scale each feature of a row."""

    center_F: Tensor
    scale_F: Tensor

    def __init__(self, scaling: Scaling) -> None:
        super().__init__()
        # Divided by, not multiplied with the inverse: that would round twice.
        self.register_buffer("center_F", scaling.center_F.clone())
        self.register_buffer("scale_F", scaling.scale_F.clone())

    def forward(self, rows_RF: Tensor) -> Tensor:
        """[R, *shape] -> [R, *shape]."""
        return (rows_RF - self.center_F) / self.scale_F

    def undo(self, normalized_RF: Tensor) -> Tensor:
        """Give back what `forward` was given, but for rounding: [..., *shape] -> [..., *shape]."""
        return normalized_RF * self.scale_F + self.center_F


def without_normalizer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the weights of the model inside from the `state_dict` of a `Normalized`."""
    inside = "model."
    return {name.removeprefix(inside): w for name, w in weights.items() if name.startswith(inside)}


class Normalized(SequenceModel):
    """A model that sees normalised rows. Gives the model's own answers when the scaling is 0 and 1."""

    def __init__(self, model: SequenceModel, scaling: Scaling) -> None:
        super().__init__(window=model.window, shape=model.shape, num_classes=model.num_classes)
        self.normalizer = Normalizer(scaling)
        self.model = model

    def encode(self, rows_RF: Tensor) -> Tensor:
        """Embed each row by itself: [R, *shape] -> [R, D]."""
        return self.model.encode(self.normalizer(rows_RF))

    def head(self, embedded_BTD: Tensor) -> Tensor:
        """Classify windows of embedded rows: [B, T, D] -> logits [B, K]."""
        return self.model.head(embedded_BTD)
