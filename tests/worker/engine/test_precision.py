"""Precisions: what autocast computes in, and steps the scaler skips."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from tests.worker.engine.factory import VIVIT, make_request, make_run, make_samples, train, weights_of
from worker.engine.events import BatchDone, EpochDone
from worker.engine.precision import Precision
from worker.engine.run import Run

torch.set_num_threads(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_float32_weights(precision: str) -> None:
    request = make_request(model=VIVIT, precision=precision, optimizer={"lr": 1e-2}, training={"epochs": 5})
    run = make_run(request, train=make_samples(150))
    epochs = [e for e in train(run) if isinstance(e, EpochDone)]
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def scaler_of(run: Run) -> GradScaler:
    assert run.precision.scaler is not None
    return run.precision.scaler


def test_steps_the_scaler_skips_are_counted_and_scheduled_as_if_they_never_were() -> None:
    # 2^40 overflows fp16 at first; the scale halves at each skipped step until gradients fit.
    request = make_request(
        precision="fp16", schedule={"warmup_steps": 1000}, training={"log_every": 1, "epochs": 1}
    )
    run = make_run(request, train=make_samples(15 * 40))
    scaler_of(run)._init_scale = 2.0**40
    before = weights_of(run)
    events = train(run)
    [epoch] = [e for e in events if isinstance(e, EpochDone)]
    assert 0 < epoch.skipped_steps < 40
    assert run.num_steps == 40 - epoch.skipped_steps
    assert scaler_of(run).get_scale() == 2.0 ** (40 - epoch.skipped_steps)
    assert epoch.lr == pytest.approx(1e-4 * run.num_steps / 1000)
    rows = [e for e in events if isinstance(e, BatchDone)]
    first_applied = 5 * (epoch.skipped_steps + 1) - 1
    assert all(row.lr is None and row.step == 1 for row in rows[:first_applied])
    assert rows[first_applied].lr == pytest.approx(1e-7)
    assert not torch.equal(weights_of(run), before)
    steps = {int(state["step"]) for state in run.optimizer.state.values()} or {run.num_steps}
    assert steps == {run.num_steps}


def test_a_skipped_step_leaves_weights_and_moments_alone() -> None:
    run = make_run(make_request(precision="fp16", training={"epochs": 1}), train=make_samples(15))
    scaler_of(run)._init_scale = 2.0**60
    before = weights_of(run)
    [epoch] = [e for e in train(run) if isinstance(e, EpochDone)]
    assert epoch.skipped_steps == 1
    assert torch.equal(weights_of(run), before)


def test_the_scale_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # Scaled as in fp16, computed in float32: there a power of two is exact.
    monkeypatch.setattr(Precision, "autocast", lambda self: nullcontext())
    runs = [make_run(make_request(precision="fp16", training={"epochs": 2})) for _ in range(2)]
    for run, scale in zip(runs, (2.0**-3, 2.0**8), strict=True):
        scaler_of(run)._init_scale = scale
    for run in runs:
        train(run)
    assert torch.equal(weights_of(runs[0]), weights_of(runs[1]))
