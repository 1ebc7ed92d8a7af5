"""Class-weighted losses per sample, and what each sample's loss counts for in its step.

Shapes: B samples of a micro-batch, S samples of a step, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from app.jobs.config import CrossEntropyConfig, FocalConfig, LossConfig, OrdinalConfig
from worker.engine.errors import ConfigInvalid

Reduction = Literal["effective_batch", "micro_batch"]


@dataclass(frozen=True, slots=True)
class Loss(ABC):
    """A class-weighted loss, not yet reduced.

    Whatever the loss, a step is the weighted mean of its samples': the sum of weighted losses / the sum of
    class weights. So accumulation is exact for each of them.
    """

    weights_K: Tensor  # in the model's dtype, on its device
    host_weights_K: Tensor  # the same numbers as float64, on the CPU

    @abstractmethod
    def per_sample(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        """Compute each sample's weighted loss [B]; their sum / their weights is the weighted mean."""

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


@dataclass(frozen=True, slots=True)
class CrossEntropy(Loss):
    """Cross-entropy with label smoothing: with its weighted mean, PyTorch's CrossEntropyLoss."""

    label_smoothing: float

    def per_sample(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_BK.to(self.weights_K.dtype),
            labels_B,
            weight=self.weights_K,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True, slots=True)
class Focal(Loss):
    """-w_y (1 - p_y)^gamma log p_y (Lin et al. 2017, arXiv:1708.02002; the weights are its alpha).

    p_y: the probability given to the label y. With gamma 0, cross-entropy.
    """

    gamma: float

    def per_sample(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        log_p_B = _log_probability(logits_BK.to(self.weights_K.dtype), labels_B)
        # Above 0, where the gradient of a power below 1 ends.
        rest_B = (-torch.expm1(log_p_B)).clamp_min(torch.finfo(log_p_B.dtype).tiny)
        return -self.weights_K[labels_B] * rest_B.pow(self.gamma) * log_p_B


@dataclass(frozen=True, slots=True)
class Ordinal(Loss):
    """w_y (-log p_y + cost_weight x sum over k of cost[y, k] p_k): cross-entropy and the expected cost.

    p_k: the probability given to class k, y: the label.
    Source: Galdran, Dolz, Chakor, Lombaert, Ben Ayed 2020, arXiv:2010.00291, with cross-entropy as its base.
    """

    cost_KK: Tensor  # rows are labels, columns predictions; cost_weight is in it

    def per_sample(self, logits_BK: Tensor, labels_B: Tensor) -> Tensor:
        log_p_BK = logits_BK.to(self.weights_K.dtype).log_softmax(dim=-1)
        expected_B = (self.cost_KK[labels_B] * log_p_BK.exp()).sum(dim=-1)
        log_p_B = log_p_BK.gather(-1, labels_B.unsqueeze(-1)).squeeze(-1)
        return self.weights_K[labels_B] * (expected_B - log_p_B)


def build_loss(
    config: LossConfig,
    class_weights: list[float] | None,
    *,
    num_classes: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Loss:
    """Build the loss a config names; class_weights: as resolved, None = all 1.

    Raises ConfigInvalid for a cost matrix of another number of classes.
    """
    weights_K = torch.tensor(class_weights or [1.0] * num_classes, dtype=dtype)
    weights = weights_K.to(device), weights_K.double()
    match config:
        case CrossEntropyConfig():
            return CrossEntropy(*weights, config.label_smoothing)
        case FocalConfig():
            return Focal(*weights, config.gamma)
        case OrdinalConfig():
            cost_KK = torch.tensor(cost_matrix(config.cost, num_classes), dtype=torch.float64)
            return Ordinal(*weights, (config.cost_weight * cost_KK).to(device=device, dtype=dtype))
        case _:
            assert_never(config)


def cost_matrix(cost: list[list[float]] | None, num_classes: int) -> list[list[float]]:
    """Settle a cost matrix: null = ((label - prediction) / (K - 1)) squared, the weights of Cohen's kappa.

    Raises ConfigInvalid for one of another number of classes.
    """
    if cost is None:
        distance = num_classes - 1
        return [[((y - k) / distance) ** 2 for k in range(num_classes)] for y in range(num_classes)]
    if len(cost) != num_classes:
        raise ConfigInvalid(
            f"loss.cost is of {len(cost)} classes, the data have {num_classes}.",
            "Give one row and one column for each class, in the order of data.classes.",
        )
    return cost


def _log_probability(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """The log of the probability given to each label, [B]."""
    return -F.cross_entropy(logits_BK, labels_B, reduction="none")


def coefficients(loss: Loss, labels_S: Tensor, reduction: Reduction, nominal: int, effective: int) -> Tensor:
    """Say what each sample's loss is multiplied by in the loss of its step: [S], on the CPU.

    effective_batch: 1 / the class weight of the whole step, so that the step is the weighted mean over it.
    micro_batch: the classic weighted mean of each nominal micro-batch / accumulation steps.
    """
    weights_S = loss.host_weights_K[labels_S]
    dtype = loss.weights_K.dtype
    match reduction:
        case "effective_batch":
            total = float(weights_S.sum())
            return torch.full(weights_S.shape, 1 / total if total else 0.0, dtype=dtype)
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
    return factors_S.to(dtype)
