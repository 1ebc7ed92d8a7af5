"""Recorded halves: when they are recorded, that they change no number, and the way on when they fail.

There is no GPU here: a stand-in records by remembering the work, and repeats it into the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.jobs.config import JobRequest
from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    InMemory,
    make_request,
    make_run,
    make_samples,
    train,
    weights_of,
)
from tests.worker.engine.test_passes import columns
from worker.engine.events import OomRecovered, Warned
from worker.engine.graphs import MAX_RECORDED, WARM_UP, Graphs
from worker.engine.run import Run
from worker.engine.step import train_step

torch.set_num_threads(1)

DROPPING = [{**MLP, "dropout": 0.4}, {**VIVIT, "dropout": 0.4}]
each_model = pytest.mark.parametrize("model", DROPPING, ids=["mlp", "vivit"])


class Remembering:
    """Records like a GPU, as seen from outside: nothing is done yet, and outputs stay where they are."""

    def __init__(self, run: Run) -> None:
        self.num_recorded = self.num_repeated = 0
        self.fails_with: Exception | None = None
        self._run = run

    def __call__(
        self, work: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise error
        self.num_recorded += 1
        places = [p.grad for p in self._run.parameters]
        before = [None if grad is None else grad.clone() for grad in places]
        random = torch.get_rng_state()
        outputs = work()
        torch.set_rng_state(random)
        for parameter, place, grad in zip(self._run.parameters, places, before, strict=True):
            parameter.grad = place
            if place is not None and grad is not None:
                place.copy_(grad)

        def repeat() -> None:
            self.num_repeated += 1
            for output, fresh in zip(outputs, work(), strict=True):
                output.copy_(fresh)
            now = [p.grad for p in self._run.parameters]
            assert all(a is b for a, b in zip(now, places, strict=True)), "gradients moved"

        return repeat, outputs


def recording(request: JobRequest, samples: InMemory | None = None) -> tuple[Run, Remembering]:
    """Make a run that records, and what it records by."""
    run = make_run(request, train=samples)
    recorder = Remembering(run)
    run.graphs = Graphs(lambda: recorder)
    return run, recorder


@each_model
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_a_recorded_run_ends_in_the_same_bits(model: dict[str, Any], precision: str, batch_size: Any) -> None:
    training = {"batch_size": batch_size, "clip_grad_norm": 0.5, "ema_decay": 0.9}
    request = make_request(model=model, precision=precision, training=training)
    plain = make_run(request)
    expected = columns(train(plain))
    recorded, recorder = recording(request)
    assert columns(train(recorded)) == expected
    assert torch.equal(weights_of(recorded), weights_of(plain))
    # The head, and both ways through the encoder for each of the numbers of rows that a step is cut into.
    assert recorder.num_recorded == (3 if batch_size == "auto" else 5)
    assert recorder.num_repeated > recorder.num_recorded


def test_a_shape_is_recorded_once_it_has_run_a_few_times() -> None:
    run, recorder = recording(make_request(model=VIVIT, training={"batch_size": 15, "accumulation_steps": 1}))
    found = []
    for samples in run.splits.train.batches(15):
        list(train_step(run, samples, 1))
        found.append(recorder.num_recorded)
    assert found == [0] * WARM_UP + [3, 3]  # the last step is a short one


def test_shapes_without_end_are_not_all_recorded() -> None:
    run, recorder = recording(make_request(model=VIVIT))
    work = lambda x: (2 * x,)  # noqa: E731
    for size in range(1, 3 * MAX_RECORDED):
        for _ in range(WARM_UP + 1):
            (doubled,) = run.graphs.classify(work, torch.ones(size))
            assert doubled.tolist() == [2.0] * size
    assert recorder.num_recorded == MAX_RECORDED


def test_a_recording_that_fails_is_a_warning_and_the_step_goes_on_without() -> None:
    request = make_request(model=DROPPING[1])
    plain = make_run(request)
    expected = columns(train(plain))
    failing, recorder = recording(request)
    recorder.fails_with = RuntimeError("operation not permitted when stream is capturing\nand more")
    events = train(failing)
    [warned] = [e for e in events if isinstance(e, Warned)]
    assert warned.code == "cuda_graphs_failed"
    assert "operation not permitted when stream is capturing" in warned.message
    assert columns(events) == expected
    assert torch.equal(weights_of(failing), weights_of(plain))
    assert not failing.graphs.is_on


def hidden() -> RuntimeError:
    """What the end of a capture raises over an error within it."""
    error = RuntimeError("capture invalidated")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), hidden()], ids=["plain", "hidden"]
)
def test_out_of_memory_while_recording_goes_down_the_ladder(error: Exception) -> None:
    request = make_request(model=VIVIT, training={"batch_size": 4, "accumulation_steps": 4})
    run, recorder = recording(request, make_samples(16 * 8))
    steps = run.splits.train.batches(16)
    recorder.fails_with = error
    events = [e for samples in steps for e in train_step(run, samples, 1) if isinstance(e, OomRecovered)]
    assert [(e.batch_size, e.message) for e in events] == [(2, "CUDA out of memory.")]
    assert run.micro_batch == 2
    assert recorder.num_recorded > 0


def test_running_out_of_memory_drops_what_was_recorded() -> None:
    request = make_request(model=VIVIT, training={"batch_size": 4, "accumulation_steps": 4})
    plain = make_run(request, train=make_samples(16 * 8))
    run, recorder = recording(request, make_samples(16 * 8))
    pairs = zip(run.splits.train.batches(16), plain.splits.train.batches(16), strict=True)
    for index, (samples, same) in enumerate(pairs):
        if index == 4:
            before = recorder.num_recorded
            assert before > 0
            run.graphs._recorded = dict.fromkeys(run.graphs._recorded, _out_of_memory)  # type: ignore[arg-type]
            plain.micro_batch = 2
        list(train_step(run, samples, 1))
        list(train_step(plain, same, 1))
    assert run.micro_batch == 2
    assert recorder.num_recorded > before
    assert torch.equal(weights_of(run), weights_of(plain))


def _out_of_memory(*_: Tensor) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert not make_run(make_request()).graphs.is_on
