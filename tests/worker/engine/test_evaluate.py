"""The validation loss is exact: one weighted mean over the split, whatever the batch."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from app.errors import InvalidData
from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    WEIGHTS,
    InMemory,
    make_request,
    make_run,
    make_samples,
    train,
)
from worker.engine.evaluate import Calibration, Evaluation, evaluate
from worker.engine.events import Tick
from worker.engine.run import Run

torch.set_num_threads(1)


def evaluated(run: Run, samples: InMemory) -> tuple[Evaluation, list[Any]]:
    """Run an evaluation to its end: its value, and the events on the way."""
    events: list[Any] = []

    def listen() -> Generator[Any, None, Evaluation]:
        return (yield from evaluate(run, samples, 1))

    evaluation = listen()
    while True:
        try:
            events.append(next(evaluation))
        except StopIteration as end:
            return end.value, events


@pytest.mark.parametrize("model", [MLP, VIVIT], ids=["mlp", "vivit"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_does_not_depend_on_the_batch(
    model: dict[str, Any], label_smoothing: float, precision: str
) -> None:
    samples = make_samples(101)
    dropping = {**model, "dropout": 0.5}
    found = []
    for size in (1, 7, 64, 1000):
        loss = {"label_smoothing": label_smoothing}
        request = make_request(
            model=dropping, loss=loss, precision=precision, training={"eval_batch_size": size}
        )
        evaluation, ticks = evaluated(make_run(request), samples)
        assert len(ticks) == -(-101 // size)
        assert all(isinstance(tick, Tick) for tick in ticks)
        found.append(evaluation)
    for other in found[1:]:
        rounding = 1e-6 if precision == "fp32" else 1e-3
        assert other.loss == pytest.approx(found[0].loss, rel=rounding)
        if precision == "fp32":
            assert other.confusion == found[0].confusion
            assert other.ece == pytest.approx(found[0].ece, abs=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 9])
def test_scores_are_those_of_the_windows_one_by_one(stride: int) -> None:
    samples = make_samples(70, stride=stride)
    run = make_run(make_request(model=VIVIT), dtype=torch.float64)
    evaluation, _ = evaluated(run, samples)
    logits_NK = run.model.eval()(samples.windows().double()).detach()
    loss = F.cross_entropy(logits_NK, samples.labels_N, weight=torch.tensor(WEIGHTS).double())
    assert evaluation.loss == pytest.approx(float(loss), rel=1e-12)
    pairs = list(zip(samples.labels_N.tolist(), logits_NK.argmax(1).tolist(), strict=True))
    assert evaluation.confusion == [[pairs.count((y, p)) for p in range(4)] for y in range(4)]
    assert evaluation.accuracy == sum(y == p for y, p in pairs) / 70


def test_calibration_error_worked_out_by_hand() -> None:
    calibration = Calibration(torch.device("cpu"))
    # Bins of 1/15: 0.91 and 0.92 share one (half right), 0.30 has its own (wrong), 1.0 the last (right).
    confidence_B = torch.tensor([0.91, 0.92, 0.30, 1.0], dtype=torch.float64)
    calibration.add(confidence_B, torch.tensor([True, False, False, True]))
    assert calibration.error() == pytest.approx((abs(1 - 1.83) + 0.30 + 0.0) / 4)


def test_the_model_is_in_training_mode_again_afterwards() -> None:
    run = make_run()
    evaluated(run, make_samples(5))
    assert run.model.training


def test_evaluating_draws_no_random_numbers() -> None:
    run = make_run(make_request(model={**VIVIT, "dropout": 0.5}))
    before = torch.get_rng_state()
    evaluated(run, make_samples(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_validation_split_without_class_weight_is_refused() -> None:
    samples = make_samples(9)
    neutral = InMemory(samples.rows_RF, torch.zeros(9, dtype=torch.long))
    run = make_run(make_request(loss={"class_weights": [0.0, 1.0, 1.0, 1.0]}), val=neutral)
    with pytest.raises(InvalidData, match="total class weight 0"):
        train(run)
