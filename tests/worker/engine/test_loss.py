"""Losses per sample: each against its formula, and a step exact for all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from app.jobs.config import LossConfig
from tests.worker.engine.factory import WEIGHTS, make_request, make_run, make_samples, train, weights_of
from worker.engine.errors import ConfigInvalid
from worker.engine.loss import Loss, build_loss

torch.set_num_threads(1)

CONFIG: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
COST = [[0.0, 1.0, 5.0, 2.0], [1.0, 0.0, 1.0, 1.0], [9.0, 1.0, 0.0, 1.0], [1.0, 2.0, 3.0, 0.0]]
LOSSES: dict[str, dict[str, Any]] = {
    "smoothed": {"name": "cross_entropy", "label_smoothing": 0.1},
    "focal": {"name": "focal", "gamma": 2.0},
    "flat-focal": {"name": "focal", "gamma": 0.5},
    "ordinal": {"name": "ordinal"},
    "costly": {"name": "ordinal", "cost": COST, "cost_weight": 0.5},
}
each_loss = pytest.mark.parametrize("config", LOSSES.values(), ids=LOSSES.keys())


def make_loss(
    config: dict[str, Any], weights: list[float] | None = WEIGHTS, dtype: torch.dtype = torch.float64
) -> Loss:
    parsed = CONFIG.validate_python(config)
    return build_loss(parsed, weights, num_classes=4, dtype=dtype, device=torch.device("cpu"))


def make_logits(count: int = 9, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_BK = torch.randn(count, 4, generator=generator, dtype=torch.float64) * scale
    return logits_BK, torch.randint(4, (count,), generator=generator)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 10.0])
def test_focal_is_its_formula(gamma: float) -> None:
    logits_BK, labels_B = make_logits()
    found = make_loss({"name": "focal", "gamma": gamma}).per_sample(logits_BK, labels_B).tolist()
    for p_K, y, loss in zip(logits_BK.softmax(-1).tolist(), labels_B.tolist(), found, strict=True):
        assert loss == pytest.approx(-WEIGHTS[y] * (1 - p_K[y]) ** gamma * math.log(p_K[y]), rel=1e-12)


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    logits_BK, labels_B = make_logits()
    cross_entropy = make_loss({"name": "cross_entropy"}).per_sample(logits_BK, labels_B)
    focal = make_loss({"name": "focal", "gamma": 0.0}).per_sample(logits_BK, labels_B)
    torch.testing.assert_close(focal, cross_entropy, rtol=1e-12, atol=1e-12)


def test_ordinal_is_its_formula() -> None:
    logits_BK, labels_B = make_logits()
    found = make_loss(LOSSES["costly"]).per_sample(logits_BK, labels_B).tolist()
    for p_K, y, loss in zip(logits_BK.softmax(-1).tolist(), labels_B.tolist(), found, strict=True):
        expected_cost = sum(cost * p for cost, p in zip(COST[y], p_K, strict=True))
        assert loss == pytest.approx(WEIGHTS[y] * (-math.log(p_K[y]) + 0.5 * expected_cost), rel=1e-12)


def test_the_default_cost_grows_with_the_square_of_the_distance() -> None:
    loss = make_loss({"name": "ordinal"}, None)
    sure_BK = 50.0 * torch.eye(4, dtype=torch.float64)
    cost_K = loss.per_sample(sure_BK, torch.zeros(4, dtype=torch.int64)) - F.cross_entropy(
        sure_BK, torch.zeros(4, dtype=torch.int64), reduction="none"
    )
    torch.testing.assert_close(cost_K, torch.tensor([0.0, 1 / 9, 4 / 9, 1.0], dtype=torch.float64))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_sure_and_wildly_wrong_predictions_have_finite_gradients(
    config: dict[str, Any], dtype: torch.dtype, scale: float
) -> None:
    logits_BK = (scale * torch.eye(4, dtype=dtype)).repeat(2, 1).requires_grad_()
    labels_B = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    losses_B = make_loss(config, dtype=dtype).per_sample(logits_BK, labels_B)
    (gradient_BK,) = torch.autograd.grad(losses_B.sum(), logits_BK)
    assert losses_B.isfinite().all()
    assert (losses_B >= 0).all()
    assert gradient_BK.isfinite().all()


@each_loss
def test_gradients_are_those_of_finite_differences(config: dict[str, Any]) -> None:
    logits_BK, labels_B = make_logits(scale=1.0)
    loss = make_loss(config)
    assert torch.autograd.gradcheck(lambda x: loss.per_sample(x, labels_B), logits_BK.requires_grad_())


def by_hand(config: dict[str, Any], logits_SK: Tensor, labels_S: Tensor) -> Tensor:
    """Write down the loss of a whole effective batch: the weighted mean of its formula."""
    p_SK = logits_SK.softmax(-1)
    one_hot_SK = F.one_hot(labels_S, 4).double()
    weights_K = torch.tensor(WEIGHTS, dtype=torch.float64)
    w_S, p_S = weights_K[labels_S], (p_SK * one_hot_SK).sum(-1)
    match config:
        case {"name": "cross_entropy", "label_smoothing": epsilon}:
            target_SK = (1 - epsilon) * one_hot_SK + epsilon / 4
            losses_S = -(weights_K * target_SK * p_SK.log()).sum(-1)
        case {"name": "focal", "gamma": gamma}:
            losses_S = -w_S * (1 - p_S) ** gamma * p_S.log()
        case _:
            cost = config.get("cost", [[(i - j) ** 2 / 9 for j in range(4)] for i in range(4)])
            expected_S = (torch.tensor(cost, dtype=torch.float64)[labels_S] * p_SK).sum(-1)
            losses_S = w_S * (config.get("cost_weight", 1.0) * expected_S - p_S.log())
    mean: Tensor = losses_S.sum() / w_S.sum()
    return mean


@each_loss
def test_any_cut_of_the_step_trains_the_weights_of_the_whole_batch(config: dict[str, Any]) -> None:
    samples = make_samples(49)  # three steps of 15 and a short one of 4
    hand = make_run(make_request(loss=config), train=samples, dtype=torch.float64)
    optimizer = torch.optim.AdamW(hand.model.parameters(), lr=1e-4, weight_decay=1e-5, foreach=False)
    x_NTF = samples.windows().double()
    for _ in range(2):
        for x_STF, labels_S in zip(torch.split(x_NTF, 15), torch.split(samples.labels_N, 15), strict=True):
            optimizer.zero_grad()
            torch.autograd.backward(by_hand(config, hand.model(x_STF), labels_S))
            optimizer.step()
    for batch_size in (15, 5, 4, 3, 1):
        training = {"batch_size": batch_size, "effective_batch": 15, "epochs": 2}
        run = make_run(make_request(loss=config, training=training), train=samples, dtype=torch.float64)
        train(run)
        torch.testing.assert_close(weights_of(run), weights_of(hand), rtol=1e-12, atol=1e-12)


def test_the_validation_loss_is_the_weighted_mean_of_focal_losses() -> None:
    val = make_samples(21, seed=1)
    run = make_run(make_request(loss=LOSSES["focal"], training={"epochs": 1}), val=val)
    done = next(event for event in train(run) if type(event).__name__ == "EpochDone")
    run.model.eval()
    logits_NK = run.model(val.windows())
    p_N = logits_NK.detach().double().softmax(-1)[torch.arange(21), val.labels_N]
    weights_N = torch.tensor(WEIGHTS, dtype=torch.float64)[val.labels_N]
    expected = (weights_N * (1 - p_N) ** 2 * -p_N.log()).sum() / weights_N.sum()
    assert done.val_loss == pytest.approx(float(expected), rel=1e-6)


def test_a_cost_matrix_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="of 2 classes, the data have 4"):
        make_loss({"name": "ordinal", "cost": [[0.0, 1.0], [1.0, 0.0]]})
