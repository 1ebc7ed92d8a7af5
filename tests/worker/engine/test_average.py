"""The moving average of the weights: advanced by applied steps, judged and saved in their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.factory import VIVIT, InMemory, make_request, make_run, make_samples, train
from worker.engine.events import EpochDone, Tested
from worker.engine.run import Run

torch.set_num_threads(1)


def by_hand(decay: float, run: Run) -> list[list[torch.Tensor]]:
    """Average the weights after each step the optimizer takes; each average in order."""
    averages = [[p.detach().clone() for p in run.model.parameters()]]

    def advance(*_: Any) -> None:
        averages.append(
            [a.lerp(p.detach(), 1 - decay) for a, p in zip(averages[-1], run.parameters, strict=True)]
        )

    run.optimizer.register_step_post_hook(advance)
    return averages


def test_it_is_evaluated_saved_and_tested_in_place_of_the_weights(tmp_path: Path) -> None:
    test = make_samples(30, seed=3)
    request = make_request(model=VIVIT, optimizer={"lr": 1e-2}, training={"ema_decay": 0.8})
    run = make_run(request, test=test, directory=tmp_path, dtype=torch.float64)
    averages = by_hand(0.8, run)
    events = train(run)
    epochs = [e for e in events if isinstance(e, EpochDone)]
    assert len(averages) == 1 + 5 * len(epochs)
    val = run.splits.val
    assert isinstance(val, InMemory)
    best = min(epochs, key=lambda e: e.val_loss)
    for epoch in epochs:
        with torch.no_grad():
            for p, average in zip(run.parameters, averages[5 * epoch.epoch], strict=True):
                p.copy_(average)
        for samples, found in ((val, epoch.val_loss), (test, loss_tested(events) if epoch is best else None)):
            logits_NK = run.model.eval()(samples.windows().double()).detach()
            loss = float(run.loss.per_sample(logits_NK, samples.labels_N).sum())
            loss /= run.loss.total_weight(samples.labels_N)
            assert found is None or found == pytest.approx(loss, rel=1e-9)
        if epoch.best is not None:
            saved = torch.load(tmp_path / epoch.best.name, weights_only=True)
            for name, p in run.model.named_parameters():
                torch.testing.assert_close(saved[name], p.detach(), rtol=1e-12, atol=1e-12)
    assert run.stopping.best_loss == best.val_loss


def loss_tested(events: list[Any]) -> float:
    [found] = [e for e in events if isinstance(e, Tested)]
    return float(found.loss)


def test_training_itself_does_not_look_at_it() -> None:
    runs = [make_run(make_request(model=VIVIT, training={"ema_decay": d})) for d in (None, 0.9)]
    plain, averaged = ([e.train_loss for e in train(run) if isinstance(e, EpochDone)] for run in runs)
    assert plain == averaged


def test_a_skipped_step_does_not_advance_it() -> None:
    samples = make_samples(45)
    rows_RF = samples.rows_RF.clone()
    rows_RF[20] = math.nan
    request = make_request(training={"epochs": 1, "ema_decay": 0.5})
    run = make_run(request, train=InMemory(rows_RF, samples.labels_N))
    averages = by_hand(0.5, run)
    [epoch] = [e for e in train(run) if isinstance(e, EpochDone)]
    assert epoch.skipped_steps == 1
    assert len(averages) == 3
    assert run.average is not None
    for found, wanted in zip(run.average.weights, averages[-1], strict=True):
        assert torch.equal(found, wanted)
