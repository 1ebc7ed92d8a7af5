"""Optimizers: torch's own numbers, with the state there before the first step."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from app.jobs.config import AdamW8BitConfig, SgdConfig
from tests.worker.engine.factory import make_request, make_run, train
from worker.engine.build import build_optimizer
from worker.engine.errors import ConfigInvalid

torch.set_num_threads(1)


def make_net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    "fields",
    [{}, {"momentum": 0.0}, {"nesterov": True}, {"weight_decay": 0.1}],
    ids=["momentum", "plain", "nesterov", "decay"],
)
def test_sgd_is_torchs(fields: dict[str, Any]) -> None:
    config = SgdConfig(lr=0.1, **fields)
    ours, theirs = make_net(), make_net()
    optimizer = build_optimizer(config, ours)
    reference = torch.optim.SGD(
        theirs.parameters(),
        lr=0.1,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        foreach=False,
    )
    for seed in range(5):
        x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for net, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            torch.autograd.backward(net(x).square().sum())
            stepper.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_first_step_adds_no_state(name: str) -> None:
    run = make_run(make_request(optimizer={"name": name}, training={"epochs": 1}))
    before = {id(t) for state in run.optimizer.state.values() for t in state.values()}
    seen: list[set[int]] = []
    run.optimizer.register_step_post_hook(
        lambda optimizer, *_: seen.append({id(t) for s in optimizer.state.values() for t in s.values()})
    )
    train(run)
    assert before
    assert seen
    assert all(after == before for after in seen)


def test_a_step_that_is_not_finite_leaves_sgd_as_it_is() -> None:
    net = make_net().float()
    optimizer = build_optimizer(SgdConfig(), net)
    scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=1.0)
    before = [p.detach().clone() for p in net.parameters()]
    torch.autograd.backward(scaler.scale(net(torch.full((1, 3), torch.inf)).sum()))
    scaler.step(optimizer)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def test_8_bits_without_the_package_are_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigInvalid, match="needs the package bitsandbytes"):
        build_optimizer(AdamW8BitConfig(), make_net())


def test_8_bits_with_the_package_get_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=torch.optim.AdamW))
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    optimizer = build_optimizer(AdamW8BitConfig(lr=0.5, betas=(0.1, 0.2)), make_net())
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["betas"] == (0.1, 0.2)
