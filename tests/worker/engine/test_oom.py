"""Out of GPU memory is a rolled-back step: the same samples again, smaller, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    make_request,
    make_run,
    make_samples,
    train,
    weights_of,
)
from worker.engine.errors import GpuOutOfMemory, RestartSmaller
from worker.engine.events import BatchDone, Ended, EpochDone, OomRecovered, Rung, decode, encode
from worker.engine.loop import fit
from worker.engine.run import Run
from worker.engine.step import train_step

torch.set_num_threads(1)


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")


def run_out(
    run: Run,
    name: str,
    should: Callable[[int, int], bool],
    *,
    in_backward: bool = False,
    error: Exception | None = None,
) -> None:
    """Make a method of the model run out of memory. should(call, samples or rows): whether this call does."""
    method, calls = getattr(run.model, name), iter(range(10**9))

    def failing(x: Tensor) -> Tensor:
        if not should(next(calls), x.shape[0]):
            return method(x)  # type: ignore[no-any-return]
        if in_backward:
            return _FailsBackward.apply(method(x))  # type: ignore[no-any-return, no-untyped-call]
        raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    setattr(run.model, name, failing)


def run_out_in_step(run: Run, *, at: int) -> None:
    """Make the optimizer's step number `at`, from 0, run out of memory."""
    calls = iter(range(10**9))

    def fail(*_: object) -> None:
        if next(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    run.optimizer.register_step_pre_hook(fail)


def steps(run: Run, *, smaller_at: int | None = None) -> list[OomRecovered]:
    """Take the steps of one epoch by hand; lower the micro-batch to 2 before step `smaller_at`."""
    recovered = []
    for index, samples in enumerate(run.splits.train.batches(16)):
        if index == smaller_at:
            run.micro_batch = 2
        recovered += [e for e in train_step(run, samples, 1) if isinstance(e, OomRecovered)]
    run.settle()
    return recovered


def request(model: dict[str, Any] = VIVIT, **sections: Any) -> Any:
    training = {"batch_size": 4, "accumulation_steps": 4, **sections.pop("training", {})}
    return make_request(model=model, training=training, **sections)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("in_backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", ["encode", "head"])
@pytest.mark.parametrize("position", range(4))
def test_a_rolled_back_step_leaves_no_trace(
    position: int, name: str, in_backward: bool, dropout: float
) -> None:
    model = {**VIVIT, "dropout": dropout}
    samples = make_samples(48)
    # The second step, of three, fails at one of its micro-batches.
    disturbed = make_run(request(model), train=samples)
    calls = {"encode": 2, "head": 4}[name]
    run_out(disturbed, name, lambda call, _: call == calls + position % calls, in_backward=in_backward)
    [recovered] = steps(disturbed)
    assert (recovered.step, recovered.batch_size) == (2, 2)
    assert recovered.message == "CUDA out of memory. Tried to allocate 2.00 GiB."

    undisturbed = make_run(request(model), train=samples)
    assert steps(undisturbed, smaller_at=1) == []
    assert torch.equal(weights_of(disturbed), weights_of(undisturbed))
    assert disturbed.num_steps == undisturbed.num_steps == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", [MLP, VIVIT], ids=["mlp", "vivit"])
def test_rows_and_epochs_of_a_disturbed_run_are_those_of_an_undisturbed_one(
    model: dict[str, Any], precision: str
) -> None:
    clip = {"training": {"clip_grad_norm": 0.5, "log_every": 3, "epochs": 2}}
    undisturbed, disturbed = (
        make_run(request(model, precision=precision, **clip), train=make_samples(50)) for _ in range(2)
    )
    run_out(disturbed, "head", lambda call, _: call in (6, 30))
    expected = [e for e in train(undisturbed) if isinstance(e, BatchDone | EpochDone)]
    found = train(disturbed)
    assert [e.batch_size for e in found if isinstance(e, OomRecovered)] == [2, 1]
    rows = [e for e in found if isinstance(e, BatchDone | EpochDone)]
    assert len(rows) == len(expected)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    for row, wanted in zip(rows, expected, strict=True):
        if isinstance(row, BatchDone):
            assert isinstance(wanted, BatchDone)
            assert (row.epoch, row.batch, row.step) == (wanted.epoch, wanted.batch, wanted.step)
            assert row.loss == pytest.approx(wanted.loss, rel=tolerance)
        else:
            assert isinstance(wanted, EpochDone)
            assert row.train_loss == pytest.approx(wanted.train_loss, rel=tolerance)
            assert sum(map(sum, row.train_confusion)) == 50


def test_the_ladder_ends_at_the_smallest_micro_batch_with_evidence() -> None:
    run = make_run(request(oom={"min_batch_size": 2}))
    run_out(run, "head", lambda call, _: True)
    events: list[Any] = []
    with pytest.raises(GpuOutOfMemory, match="a batch of 2; none went through") as caught:
        events += train(run)
    assert caught.value.code == "gpu_out_of_memory"
    assert caught.value.evidence["batch_size"] == 2
    assert caught.value.evidence["effective_batch"] == 16


def test_at_the_smallest_micro_batch_rows_are_no_longer_shared_across_micro_batches() -> None:
    run = make_run(request(training={"batch_size": 1, "accumulation_steps": 16}))
    run_out(run, "encode", lambda call, rows: rows > 4)
    [recovered] = [
        e for e in train_step(run, next(run.splits.train.batches(16)), 1) if isinstance(e, OomRecovered)
    ]
    assert recovered.batch_size == 1
    assert not run.is_sharing


def test_recovery_switched_off_fails_at_once() -> None:
    run = make_run(request(oom={"recover": False}))
    run_out(run, "head", lambda call, _: True)
    with pytest.raises(GpuOutOfMemory) as caught:
        train(run)
    assert caught.value.hint == "Set oom.recover to true, or lower training.batch_size."


def test_out_of_memory_in_the_optimizer_step_ends_the_attempt_a_rung_lower() -> None:
    run = make_run(request())
    before = weights_of(run)
    run_out_in_step(run, at=0)
    told: list[Any] = []
    with pytest.raises(RestartSmaller, match="CUDA out of memory"):
        told.extend(fit(run))
    last = told[-1]
    assert isinstance(last, OomRecovered)
    assert (last.step, last.during, last.rung) == (1, "the optimizer step", Rung(2, 64, True, False))
    assert torch.equal(weights_of(run), before)
    assert decode(encode(last)) == last


def test_out_of_memory_in_the_optimizer_step_is_final_where_there_is_no_lower_rung() -> None:
    run = make_run(request(oom={"recover": False}))
    run_out_in_step(run, at=2)
    with pytest.raises(GpuOutOfMemory, match="the optimizer step with a batch of 4") as caught:
        train(run)
    evidence = caught.value.evidence
    assert (evidence["during"], evidence["largest_batch_that_fits"]) == ("the optimizer step", 4)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously",
    ],
)
def test_libraries_that_run_out_of_memory_are_heard_too(message: str) -> None:
    run = make_run(request())
    run_out(run, "head", lambda call, _: call == 0, error=RuntimeError(message))
    [recovered] = steps(run)
    assert (recovered.batch_size, recovered.message) == (2, message.partition("\n")[0])


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("a bug")],
    ids=["python", "torch", "bug"],
)
@pytest.mark.parametrize("phase", ["training", "evaluation"])
def test_no_other_error_is_taken_for_it(phase: str, error: Exception) -> None:
    run = make_run(request())
    run_out(run, "head", lambda *_: run.model.training == (phase == "training"), error=error)
    with pytest.raises(type(error)) as caught:
        train(run)
    assert caught.value is error
    assert run.rung == Rung(4, 64, True, False)


def test_evaluation_out_of_memory_goes_on_in_halves() -> None:
    samples = make_samples(50, seed=1)
    undisturbed, disturbed = (make_run(make_request(training={"epochs": 1}), val=samples) for _ in range(2))
    run_out(disturbed, "head", lambda call, windows: windows > 16)
    [expected] = [e for e in train(undisturbed) if isinstance(e, EpochDone)]
    events = train(disturbed)
    [found] = [e for e in events if isinstance(e, EpochDone)]
    recovered = [e for e in events if isinstance(e, OomRecovered)]
    assert [(e.during, e.batch_size) for e in recovered] == [("evaluation", 32), ("evaluation", 16)]
    assert recovered[-1].rung == Rung(3, 16, True, False)
    assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-6)
    assert found.confusion == expected.confusion
    assert isinstance(events[-1], Ended)


def test_the_first_optimizer_step_allocates_no_state() -> None:
    run = make_run()
    state = {id(t) for s in run.optimizer.state.values() for t in s.values()}
    assert len(state) == 3 * len(list(run.model.parameters()))
    list(train_step(run, next(run.splits.train.batches(15)), 1))
    assert {id(t) for s in run.optimizer.state.values() for t in s.values()} == state
