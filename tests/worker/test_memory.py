"""The memory a step is said to take, against what the allocator of a real one hands out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from app.jobs.config import JobRequest
from tests.worker.models.custom_nets import Normalised
from worker.describe import describe
from worker.engine.resolve import Resolved, resolve
from worker.engine.run import build_run
from worker.engine.samples import Splits
from worker.engine.step import train_step
from worker.memory import FEW_ROWS, step_bytes, without_onednn
from worker.models.base import batch_layers
from worker.stream.batch import Batch

torch.set_num_threads(1)

SHAPE = (4, 64)
SMALL = {"d_model": 32, "heads": 2}
JOBS: dict[str, dict[str, Any]] = {
    "vivit": {},
    "shared-rows": {"training": {"batch_size": 8, "effective_batch": 128}},
    "one-batch": {"training": {"batch_size": 64, "accumulation_steps": 1}},
    "fp16": {"precision": "fp16"},
    "bf16-average": {"precision": "bf16", "training": {"ema_decay": 0.9}},
    "recomputing": {
        "model": {"name": "transformer", "layers": 8},
        "training": {"batch_size": 64, "accumulation_steps": 1, "activation_checkpointing": True},
    },
    "sgd": {"model": {"name": "mlp"}, "optimizer": {"name": "sgd"}},
    "tcn": {"model": {"name": "tcn"}},
    "gru-long": {"model": {"name": "gru"}, "data": {"path": "any", "window": 4 * FEW_ROWS}},
    "lstm": {"model": {"name": "lstm"}, "training": {"batch_size": 32}},
    "cnn_lstm": {"model": {"name": "cnn_lstm"}},
}


class Nothing:
    def __len__(self) -> int:
        return 1

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Any:
        raise NotImplementedError


def make_job(**body: Any) -> tuple[JobRequest, Resolved]:
    request = JobRequest.model_validate({"data": {"path": "any"}, "device": "cpu", **body}, strict=False)
    return request, resolve(request, num_classes=4)


def most_allocated(request: JobRequest, resolved: Resolved) -> int:
    """Take two steps, and add up what the allocator hands out and takes back meanwhile."""
    count, window = resolved.effective_batch, request.data.window
    rows_RF = torch.randn(count + window - 1, *SHAPE)
    samples = Batch(rows_RF, torch.arange(count), torch.randint(4, (count,)), window, is_dense=True)
    # The LSTM of oneDNN, which no GPU has, keeps up to twice as much.
    with (
        without_onednn() if request.model.name in ("lstm", "cnn_lstm") else nullcontext(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        run = build_run(
            request,
            resolved,
            shape=SHAPE,
            num_classes=4,
            splits=Splits(Nothing(), Nothing(), None),
            directory=Path(),
        )
        for _ in range(2):
            list(train_step(run, samples, 1))
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("name", JOBS)
def test_the_estimate_is_within_a_fifth_of_what_a_step_takes(name: str) -> None:
    request, resolved = make_job(**JOBS[name])
    estimate = step_bytes(request, resolved, shape=SHAPE, num_classes=4)
    assert 0.95 <= estimate / most_allocated(request, resolved) <= 1.2


def question(request: JobRequest, *cuts: list[Any], prefixes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "config": request.model_dump(mode="json"),
        "precision": "fp32",
        "shape": list(SHAPE),
        "num_classes": 4,
        "cuts": list(cuts),
        "allowed_prefixes": list(prefixes),
    }


def test_every_rung_of_the_ladder_takes_less() -> None:
    request, _ = make_job(model={"name": "transformer", "layers": 4}, training={"batch_size": 32})
    cuts = [[32, True, False], [8, True, False], [1, True, False], [1, False, False], [1, False, True]]
    counts = describe(question(request, *cuts))["step_bytes"]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == len(counts)


def test_of_a_model_that_needs_numbers_no_memory_is_said() -> None:
    target = "tests.worker.models.custom_nets:Stubborn"
    request, _ = make_job(model={"name": "custom", "target": target})
    found = describe(question(request, [3, True, False], prefixes=("tests",)))
    assert found["parameters"] > 0
    assert found["step_bytes"] == [None]


def test_layers_that_look_at_the_whole_micro_batch_are_named() -> None:
    target = "tests.worker.models.custom_nets:Normalised"
    request, _ = make_job(model={"name": "custom", "target": target})
    assert describe(question(request, prefixes=("tests",)))["batch_layers"] == ["net.norm"]
    assert batch_layers(Normalised(2, (3,), 4)) == ["norm"]
