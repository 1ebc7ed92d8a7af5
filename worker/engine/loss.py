"""Class-weighted losses per sample, and what each sample's loss counts for in its step.

Shapes: B samples of a micro-batch, S samples of a step, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["effective_batch", "micro_batch"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Cross-entropy with class weights and label smoothing, not yet reduced."""

    weights_K: Tensor  # in the model's dtype, on its device
    host_weights_K: Tensor  # the same numbers as float64, on the CPU
    label_smoothing: float

    def per_sample(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Compute each sample's weighted loss [B]; their sum / their weights is PyTorch's weighted mean."""
        return F.cross_entropy(
            logits_BK.to(self.weights_K.dtype),
            labels_B,
            weight=self.weights_K,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

    def total_weight(self, labels_S: Tensor) -> float:
        """Sum the class weights of labels on the CPU."""
        return float(self.host_weights_K[labels_S].sum())

    def mean(self, loss_sum: float, support: list[int]) -> float:
        """Divide summed losses by the class weight of the samples they come from; nan when that is 0.

        support: samples of each class.
        """
        weight = self.weight_of(support)
        return loss_sum / weight if weight else math.nan

    def weight_of(self, support: list[int]) -> float:
        """Sum the class weights of that many samples of each class."""
        return math.fsum(w * n for w, n in zip(self.host_weights_K.tolist(), support, strict=True))


def build_loss(
    class_weights: list[float] | None,
    *,
    num_classes: int,
    label_smoothing: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Loss:
    """Build the loss; class_weights None = all 1."""
    weights_K = torch.tensor(class_weights or [1.0] * num_classes, dtype=dtype)
    return Loss(weights_K.to(device), weights_K.double(), label_smoothing)


def coefficients(loss: Loss, labels_S: Tensor, reduction: Reduction, nominal: int, effective: int) -> Tensor:
    """Say what each sample's loss is multiplied by in the loss of its step: [S], on the CPU.

    effective_batch: 1 / the class weight of the whole step, so that the step is the weighted mean over it.
    micro_batch: the classic weighted mean of each nominal micro-batch / accumulation steps.
    """
    weights_S = loss.host_weights_K[labels_S]
    match reduction:
        case "effective_batch":
            divisors_S = weights_S.sum().expand_as(weights_S)
        case "micro_batch":
            accumulation_steps = -(-effective // nominal)
            divisors_S = torch.cat(
                [
                    (part.sum() * accumulation_steps).expand_as(part)
                    for part in torch.split(weights_S, nominal)
                ]
            )
        case _:
            assert_never(reduction)
    # A nominal micro-batch of total weight 0 has losses 0 as well.
    factors_S = torch.where(divisors_S > 0, divisors_S.reciprocal(), 0.0)
    return factors_S.to(loss.weights_K.dtype)
