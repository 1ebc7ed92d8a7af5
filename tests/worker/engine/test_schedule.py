"""The learning rate of each step, against torch's own schedulers where there is one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from app.jobs.config import ScheduleConfig
from tests.worker.engine.factory import make_request, make_run, train
from worker.engine.events import EpochDone
from worker.engine.schedule import Schedule, build_schedule

CONFIG: TypeAdapter[ScheduleConfig] = TypeAdapter(ScheduleConfig)
LR = 0.3
NAMES = ["constant", "linear", "cosine", "one_cycle", "plateau"]


def make(name: str, *, steps: int = 40, **fields: Any) -> Schedule:
    return build_schedule(
        CONFIG.validate_python({"name": name, **fields}), LR, steps_per_epoch=steps, epochs=1
    )


def rates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.at(step) for step in range(1, steps + 1)]


def make_optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def oracle(optimizer: torch.optim.SGD, scheduler: LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_linear_is_torchs(steps: int, final: float) -> None:
    optimizer = make_optimizer()
    scheduler = LinearLR(optimizer, 1.0, final, total_iters=steps)
    assert rates(make("linear", steps=steps, final_ratio=final), steps) == pytest.approx(
        oracle(optimizer, scheduler, steps), rel=1e-9
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torchs(steps: int, final: float) -> None:
    optimizer = make_optimizer()
    scheduler = CosineAnnealingLR(optimizer, steps, eta_min=final * LR)
    assert rates(make("cosine", steps=steps, final_ratio=final), steps) == pytest.approx(
        oracle(optimizer, scheduler, steps), rel=1e-9
    )


@pytest.mark.parametrize("steps", [10, 33, 200])
@pytest.mark.parametrize(
    "fields",
    [{}, {"pct_start": 0.5}, {"div_factor": 10.0, "final_div_factor": 3.0}],
    ids=["default", "middle", "factors"],
)
def test_one_cycle_is_torchs(steps: int, fields: dict[str, Any]) -> None:
    optimizer = make_optimizer()
    scheduler = OneCycleLR(optimizer, LR, total_steps=steps + 1, cycle_momentum=False, **fields)
    expected = oracle(optimizer, scheduler, steps)
    # One more than trained, since torch raises behind its last step.
    assert rates(make("one_cycle", steps=steps + 1, **fields), steps) == pytest.approx(expected, rel=1e-9)


def test_a_one_cycle_with_warmup_is_at_its_peak_there_and_lowest_at_the_end() -> None:
    found = rates(make("one_cycle", warmup_steps=6), 40)
    assert found[0] == pytest.approx(LR / 25)
    assert found[5] == LR == max(found)
    assert found[-1] == pytest.approx(LR / 25 / 1e4)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("fields", [{}, {"warmup_steps": 1}, {"warmup_steps": 9}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_training_of_a_few_steps_has_sound_rates(name: str, fields: dict[str, int], steps: int) -> None:
    assert all(0 < lr <= LR for lr in rates(make(name, steps=steps, **fields), steps))


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "plateau"])
def test_the_warmup_rises_from_0_in_a_straight_line(name: str) -> None:
    found = rates(make(name, warmup_steps=8), 40)
    assert found[:8] == pytest.approx([LR * step / 8 for step in range(1, 9)])
    assert max(found) == LR
    plain = rates(make(name, steps=33), 33)
    assert found[7:] == pytest.approx(plain)  # behind it, the schedule over what is left


@pytest.mark.parametrize("name", NAMES)
def test_past_the_plan_the_rate_stays_in_bounds(name: str) -> None:
    schedule = make(name)
    assert 0 <= schedule.at(41) <= LR
    assert schedule.at(1000) == schedule.at(41)


LOSSES = [3.0, 2.0, 2.0, 1.99999, 1.9, 2.0, math.nan, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 5.0, 5.0, 5.0, math.inf]


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_plateau_is_torchs(patience: int, threshold: float) -> None:
    optimizer = make_optimizer()
    scheduler = ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, min_lr=0.1 * LR, eps=0.0
    )
    schedule = make("plateau", patience=patience, threshold=threshold, min_ratio=0.1)
    for number, loss in enumerate(LOSSES, 1):
        scheduler.step(loss)
        schedule.validated(loss)
        assert schedule.at(number) == pytest.approx(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("cut", range(len(LOSSES)))
def test_a_plateau_goes_on_from_its_state(cut: int) -> None:
    whole, before, after = (make("plateau", patience=1) for _ in range(3))
    for loss in LOSSES:
        whole.validated(loss)
    for loss in LOSSES[:cut]:
        before.validated(loss)
    after.load_state_dict(json.loads(json.dumps(before.state_dict(), allow_nan=False)))
    for loss in LOSSES[cut:]:
        after.validated(loss)
    assert (after.at(9), after.state_dict()) == (whole.at(9), whole.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_with_each_schedule_over_all_its_steps(name: str) -> None:
    request = make_request(schedule={"name": name}, training={"epochs": 2}, early_stopping=None)
    run = make_run(request)
    epochs = [event for event in train(run) if isinstance(event, EpochDone)]
    assert run.num_steps == 10  # 64 samples: five steps an epoch
    plan = build_schedule(request.schedule, request.optimizer.lr, steps_per_epoch=5, epochs=2)
    assert epochs[0].lr == plan.at(5)
