"""Accumulation is invisible: however a step is cut, training gives the weights of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss

from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    WEIGHTS,
    InMemory,
    make_request,
    make_run,
    make_samples,
    train,
    weights_of,
)
from worker.engine.run import Run
from worker.engine.step import encode_once, train_step

torch.set_num_threads(1)

CUTS: dict[str, dict[str, Any]] = {
    "15x1": {"batch_size": 15, "accumulation_steps": 1},
    "5x3": {"batch_size": 5, "accumulation_steps": 3},
    "3x5": {"batch_size": 3, "accumulation_steps": 5},
    "1x15": {"batch_size": 1, "accumulation_steps": 15},
    "4+4+4+3": {"batch_size": 4, "effective_batch": 15},
    "auto": {"batch_size": "auto"},
}
each_model = pytest.mark.parametrize("model", [MLP, VIVIT], ids=["mlp", "vivit"])


def reference_weights(
    run: Run, samples: InMemory, *, label_smoothing: float = 0.0, epochs: int = 3
) -> Tensor:
    """Train by hand: PyTorch's weighted mean on each whole effective batch of 15, windows copied out."""
    x_NTF, model = samples.windows().double(), run.model
    criterion = CrossEntropyLoss(torch.tensor(WEIGHTS).double(), label_smoothing=label_smoothing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5, foreach=False)
    for _ in range(epochs):
        for x_STF, labels_S in zip(torch.split(x_NTF, 15), torch.split(samples.labels_N, 15), strict=True):
            optimizer.zero_grad()
            criterion(model(x_STF), labels_S).backward()
            optimizer.step()
    return weights_of(run)


@each_model
@pytest.mark.parametrize("stride", [1, 2, 9], ids=["dense", "overlapping", "sparse"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_any_cut_of_the_step_trains_the_weights_of_the_whole_batch(
    model: dict[str, Any], stride: int, label_smoothing: float
) -> None:
    # 64 samples: four steps of 15 and a short one of 4.
    samples = make_samples(64, stride=stride)
    loss = {"label_smoothing": label_smoothing}
    by_hand = make_run(make_request(model=model), train=samples, dtype=torch.float64)
    expected = reference_weights(by_hand, samples, label_smoothing=label_smoothing)
    for cut in CUTS.values():
        run = make_run(make_request(model=model, training=cut, loss=loss), train=samples, dtype=torch.float64)
        train(run)
        torch.testing.assert_close(weights_of(run), expected, rtol=1e-12, atol=1e-12)


@each_model
def test_the_classic_reduction_is_the_mean_of_means(model: dict[str, Any]) -> None:
    samples = make_samples(34)  # two steps of 15 and a short one of 3 + 1
    training = {"loss_reduction": "micro_batch", "epochs": 2}
    request = make_request(model=model, training=training)
    run, by_hand = (make_run(request, train=samples, dtype=torch.float64) for _ in range(2))
    criterion = CrossEntropyLoss(torch.tensor(WEIGHTS).double())
    optimizer = torch.optim.AdamW(by_hand.model.parameters(), lr=1e-4, weight_decay=1e-5, foreach=False)
    x_NTF = samples.windows().double()
    for _ in range(2):
        for x_STF, labels_S in zip(torch.split(x_NTF, 15), torch.split(samples.labels_N, 15), strict=True):
            optimizer.zero_grad()
            for x_BTF, labels_B in zip(torch.split(x_STF, 3), torch.split(labels_S, 3), strict=True):
                (criterion(by_hand.model(x_BTF), labels_B) / 5).backward()
            optimizer.step()
    train(run)
    torch.testing.assert_close(weights_of(run), weights_of(by_hand), rtol=1e-12, atol=1e-12)
    exact = make_run(make_request(model=model, training={"epochs": 2}), train=samples, dtype=torch.float64)
    train(exact)
    assert not torch.allclose(weights_of(run), weights_of(exact), rtol=1e-12, atol=1e-12)


def gradient(
    precision: str,
    cut: dict[str, Any],
    samples: InMemory,
    dtype: torch.dtype,
    loss: dict[str, Any],
) -> Tensor:
    """Return the gradient of one step, at its true size."""
    request = make_request(model=VIVIT, precision=precision, training=cut, loss=loss)
    run = make_run(request, dtype=dtype, train=samples)
    # Small enough that fp16 does not overflow: the scaler would skip the step.
    if run.precision.scaler is not None:
        run.precision.scaler._init_scale = 256.0
    found: list[Tensor] = []
    run.optimizer.register_step_pre_hook(
        lambda *_: found.append(
            torch.cat([p.grad.double().flatten() for p in run.model.parameters() if p.grad is not None])
        )
    )
    list(train_step(run, next(samples.batches(15)), 1))
    return found[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("cut", ["5x3", "3x5", "1x15", "4+4+4+3"])
@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ordinal"])
def test_accumulating_rounds_no_more_than_twice_the_whole_batch(precision: str, cut: str, name: str) -> None:
    loss = {"name": name}
    whole_error = cut_error = 0.0
    for seed in range(8):
        samples = make_samples(15, seed=seed)
        exact = gradient("fp32", CUTS["15x1"], samples, torch.float64, loss)
        whole = gradient(precision, CUTS["15x1"], samples, torch.float32, loss)
        accumulated = gradient(precision, CUTS[cut], samples, torch.float32, loss)
        whole_error += float((whole - exact).norm() / exact.norm())
        cut_error += float((accumulated - exact).norm() / exact.norm())
    assert 0 < cut_error <= 2 * whole_error


@pytest.mark.parametrize("stride", [1, 2, 9])
@pytest.mark.parametrize("micro_batch", [1, 2, 4, 16])
def test_rows_encoded_together_never_outnumber_the_windows_of_a_micro_batch(
    stride: int, micro_batch: int
) -> None:
    batch = next(make_samples(33, stride=stride).batches(33))
    parts = list(encode_once(batch, micro_batch, is_sharing=True))
    assert torch.equal(torch.cat([p.labels_B for p in parts]), batch.labels_B)
    assert torch.equal(torch.cat([p.windows_BTF() for p in parts]), batch.windows_BTF())
    assert all(len(p.rows_RF) <= max(micro_batch, 2) * batch.window for p in parts)
    assert all(len(p) % micro_batch == 0 for p in parts[:-1])
    for part in encode_once(batch, micro_batch, is_sharing=False):
        assert len(part) <= micro_batch
        assert len(part.rows_RF) <= len(part) * batch.window
