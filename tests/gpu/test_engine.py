"""The trainer on a GPU: no waiting, the same numbers, memory that runs out and comes back."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from app.jobs.config import JobRequest
from tests.worker.engine.factory import VIVIT, make_run, make_samples, train, weights_of
from worker.engine.events import CheckpointSaved, EpochDone, OomRecovered, Warned
from worker.engine.graphs import Graphs
from worker.engine.loop import fit
from worker.engine.resume import restore
from worker.engine.run import Run
from worker.engine.step import train_step
from worker.engine.upload import Upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MODEL = {**VIVIT, "d_model": 32, "dropout": 0.2}


def request(**sections: Any) -> JobRequest:
    training = {"threads": 1, "epochs": 2, **sections.pop("training", {})}
    body = {"data": {"path": "demo", "window": 4}, "model": MODEL, "device": "cuda:0"}
    return JobRequest.model_validate({**body, **sections, "training": training}, strict=False)


def losses(events: list[Any]) -> list[float]:
    return [loss for e in events if isinstance(e, EpochDone) for loss in (e.train_loss, e.val_loss)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(precision: str) -> None:
    run = make_run(request(precision=precision, optimizer={"lr": 1e-2}, training={"epochs": 5}))
    found = losses(train(run))
    assert all(math.isfinite(loss) for loss in found)
    assert found[-2] < found[0]


def test_a_step_never_waits_for_the_device() -> None:
    run = make_run(request(precision="bf16", training={"log_every": 10**6}), train=make_samples(150))
    steps = run.splits.train.batches(15)
    list(train_step(run, next(steps), 1))
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode itself is a prototype
            torch.cuda.set_sync_debug_mode("error")
        for samples in steps:
            list(train_step(run, samples, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rows_arrive_whole_while_the_device_is_busy() -> None:
    """Pinned blocks and device memory go round only when the copy, or what reads it, is done."""
    device = torch.device("cuda:0")
    upload, ballast = Upload(device), torch.randn(4096, 4096, device=device)
    sums = []
    for number in range(200):
        rows = upload(torch.full((64, 4, 128), float(number)))
        ballast = (ballast @ ballast).clamp(-1, 1)
        sums.append(rows.mean())
    assert torch.stack(sums).tolist() == [float(number) for number in range(200)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_recorded_steps_train_the_weights_of_plain_ones(precision: str, dropout: float) -> None:
    """Dropout too: a launch draws the masks that the plain work would have drawn."""
    found = []
    for is_recorded in (True, False):
        job = request(model={**MODEL, "dropout": dropout}, precision=precision, training={"epochs": 4})
        run = make_run(job, train=make_samples(150))
        assert run.graphs.is_on
        if not is_recorded:
            run.graphs = Graphs(None)
        events, num_recorded = [], 0
        for event in fit(run):
            events.append(event)
            num_recorded = max(num_recorded, len(run.graphs._recorded))
        assert not any(isinstance(event, Warned) for event in events)
        assert bool(num_recorded) == is_recorded
        found.append((losses(events), weights_of(run)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-3)


def test_accumulation_is_invisible_and_agrees_with_the_cpu() -> None:
    found = []
    for cut in ({"batch_size": 15, "accumulation_steps": 1}, {"batch_size": 3}, {"batch_size": "auto"}):
        run = make_run(request(model={**MODEL, "dropout": 0.0}, training=cut), dtype=torch.float64)
        train(run)
        found.append(weights_of(run).cpu())
    cpu = make_run(request(model={**MODEL, "dropout": 0.0}, device="cpu"), dtype=torch.float64)
    train(cpu)
    for weights in found:
        torch.testing.assert_close(weights, weights_of(cpu), rtol=1e-9, atol=1e-12)


def test_deterministic_dropout_is_that_of_the_cpu() -> None:
    weights = []
    try:
        for device in ("cuda:0", "cpu"):
            run = make_run(request(device=device, training={"deterministic": True}), dtype=torch.float64)
            train(run)
            weights.append(weights_of(run).cpu())
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_ends_in_the_same_bits(precision: str, tmp_path: Path) -> None:
    body = {"precision": precision, "training": {"deterministic": True, "ema_decay": 0.9}}

    def run_in(name: str) -> Run:
        (tmp_path / name).mkdir()
        return make_run(request(**body), directory=tmp_path / name)

    try:
        whole = run_in("whole")
        expected = losses(train(whole))
        first = run_in("first")
        events: list[Any] = []
        for event in fit(first):
            events.append(event)
            if len(events) == 20:
                first.request_checkpoint()
            if isinstance(event, CheckpointSaved):
                break
        second = run_in("second")
        restore(second, first.directory / events[-1].name, sha256=events[-1].sha256)
        assert losses(events) + losses(train(second)) == expected
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(weights_of(second), weights_of(whole))


def test_memory_that_runs_out_is_found_again_in_smaller_micro_batches() -> None:
    wide = {**MODEL, "d_model": 512, "layers": 4}
    run = make_run(
        request(model=wide, training={"batch_size": 512, "accumulation_steps": 1, "epochs": 1}),
        train=make_samples(512),
    )
    free, total = torch.cuda.mem_get_info()
    used = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((used + 96 * 2**20) / total)
    try:
        events = train(run)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert free > 0
    assert any(isinstance(e, OomRecovered) for e in events)
    assert all(math.isfinite(loss) for loss in losses(events))


def test_a_compiled_model_trains() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own
        events = train(make_run(request(precision="bf16", training={"compile": True})))
    assert not any(isinstance(e, Warned) for e in events)
    assert all(math.isfinite(loss) for loss in losses(events))
