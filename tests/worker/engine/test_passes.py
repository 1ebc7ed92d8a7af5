"""Recomputed and compiled passes: the same numbers, and a way on when they fail."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import Unsupported

from app.jobs.config import JobRequest
from tests.worker.engine.factory import MLP, VIVIT, make_request, make_run, train, weights_of
from tests.worker.engine.test_oom import run_out
from worker.engine.errors import GpuOutOfMemory
from worker.engine.events import BatchDone, EpochDone, OomRecovered, Warned
from worker.engine.run import Run
from worker.engine.step import train_step

torch.set_num_threads(1)

DROPPING = [{**MLP, "dropout": 0.4}, {**VIVIT, "dropout": 0.4}]
each_model = pytest.mark.parametrize("model", DROPPING, ids=["mlp", "vivit"])


@pytest.fixture(autouse=True)
def _deterministic_off() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def trained(request: JobRequest) -> tuple[list[Any], list[Any], list[float]]:
    """Build and train one run: its events, its numeric columns, its final weights."""
    run = make_run(request)
    events = train(run)
    return events, columns(events), weights_of(run).tolist()


def columns(events: list[Any]) -> list[Any]:
    rows: list[Any] = [(e.batch, e.loss, e.accuracy, e.grad_norm) for e in events if isinstance(e, BatchDone)]
    return rows + [(e.train_loss, e.val_loss) for e in events if isinstance(e, EpochDone)]


@each_model
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_recomputing_activations_changes_no_bit(
    model: dict[str, Any], precision: str, deterministic: bool
) -> None:
    found = [
        trained(
            make_request(
                model=model,
                precision=precision,
                training={"activation_checkpointing": on, "deterministic": deterministic},
            )
        )
        for on in (False, True)
    ]
    assert found[0][1:] == found[1][1:]


def kept_bytes(run: Run) -> int:
    """Count what a step keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embedded_RD = run.passes.encode(torch.randn(40, *run.model.shape))
        run.passes.head(embedded_RD.view(10, 4, -1))
    return sum(kept.values())


def test_recomputing_keeps_less() -> None:
    plain, recomputed = (
        make_run(make_request(model={**VIVIT, "layers": 8}, training={"activation_checkpointing": on}))
        for on in (False, True)
    )
    assert kept_bytes(recomputed) < 0.5 * kept_bytes(plain)


def test_recomputing_is_the_last_rung_before_giving_up() -> None:
    run = make_run(make_request(model=DROPPING[1], training={"batch_size": 1, "accumulation_steps": 4}))
    run_out(run, "encode", lambda call, _: call < 2)
    events = list(train_step(run, next(run.splits.train.batches(4)), 1))
    assert [e.batch_size for e in events if isinstance(e, OomRecovered)] == [1, 1]
    assert (run.is_sharing, run.is_recomputing) == (False, True)
    run_out(run, "encode", lambda call, _: True)
    with pytest.raises(GpuOutOfMemory) as caught:
        list(train_step(run, next(run.splits.train.batches(4)), 1))
    assert caught.value.evidence["activation_checkpointing"]


@each_model
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_compiled_model_trains_the_same_weights(
    model: dict[str, Any], deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced, but not handed to a C++ compiler, which takes its time.
    monkeypatch.setattr("torch.compile", partial(torch.compile, backend="eager"))
    plain, compiled = (
        trained(make_request(model=model, training={"compile": on, "deterministic": deterministic}))
        for on in (False, True)
    )
    assert [e for e in compiled[0] if isinstance(e, Warned)] == []
    assert compiled[1:] == plain[1:]


def test_a_model_that_does_not_compile_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise Unsupported("this model is beyond me\nand more")

    monkeypatch.setattr("torch.compile", lambda function: refuse)
    plain, fallen = (
        trained(make_request(model=DROPPING[1], training={"compile": on})) for on in (False, True)
    )
    [warned] = [e for e in fallen[0] if isinstance(e, Warned)]
    assert warned.code == "compile_failed"
    assert "this model is beyond me" in warned.message
    assert fallen[1:] == plain[1:]


def test_samples_of_a_step_survive_a_compile_that_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def compiled(function: Any) -> Any:
        def sometimes(x: Tensor) -> Tensor:
            if next(calls) == 3:
                raise Unsupported("a shape too many")
            found: Tensor = function(x)
            return found

        return sometimes

    monkeypatch.setattr("torch.compile", compiled)
    plain, fallen = (
        trained(make_request(model=DROPPING[1], training={"compile": on})) for on in (False, True)
    )
    assert fallen[1:] == plain[1:]
