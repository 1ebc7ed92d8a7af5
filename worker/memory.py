"""How much memory a step of training takes, without taking it: a step on tensors that have no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from app.jobs.config import CnnLstmConfig, GruConfig, JobRequest, LstmConfig
from worker.engine.halves import Halves, Shared
from worker.engine.resolve import Resolved
from worker.engine.run import Run, build_run
from worker.engine.samples import Splits
from worker.engine.step import encode_once
from worker.models import build_model
from worker.stream.batch import Batch

FEW_ROWS = 16


def step_bytes(
    request: JobRequest,
    resolved: Resolved,
    *,
    shape: Sequence[int],
    num_classes: int,
    allowed_prefixes: Sequence[str] = (),
) -> int:
    """Estimate the most memory that tensors take in a step: weights, gradients, optimizer, activations.

    Operations run in the order of training, on tensors of shapes alone (FakeTensor), and every storage counts
    from its first use to its last. Not counted: what kernels and libraries need for themselves, and rounding
    by the allocator. Kernels are those of a CPU: a GPU's may keep a little more or less.
    """

    def of(window: int) -> int:
        return _traced(
            request.model_copy(update={"data": request.data.model_copy(update={"window": window})}),
            resolved,
            shape=shape,
            num_classes=num_classes,
            allowed_prefixes=allowed_prefixes,
        )

    window = request.data.window
    is_recurrent = isinstance(request.model, LstmConfig | GruConfig | CnnLstmConfig)
    if not is_recurrent or window <= 2 * FEW_ROWS:
        return of(window)
    # Every row costs the same, and to walk through thousands of them takes minutes.
    few, more = of(FEW_ROWS), of(2 * FEW_ROWS)
    return few + (more - few) * (window - FEW_ROWS) // FEW_ROWS


def _traced(
    request: JobRequest,
    resolved: Resolved,
    *,
    shape: Sequence[int],
    num_classes: int,
    allowed_prefixes: Sequence[str] = (),
) -> int:
    with torch.device("meta"):
        model = build_model(
            request.model,
            window=request.data.window,
            shape=shape,
            num_classes=num_classes,
            allowed_prefixes=allowed_prefixes,
        )
    training = request.training.model_copy(update={"compile": False, "deterministic": False})
    request = request.model_copy(update={"training": training})
    with FakeTensorMode(), without_onednn():
        step = _any_step(resolved.effective_batch, request.data.window, shape)
        with _Watch() as watch:
            _materialise(model)
            run = build_run(
                request,
                replace(resolved, device="cpu", threads=torch.get_num_threads()),
                shape=shape,
                num_classes=num_classes,
                splits=Splits(_Nothing(), _Nothing(), None),
                directory=Path(),
                model=model,
            )
            _train(run, step)
    return int(watch.most)


@contextmanager
def without_onednn() -> Iterator[None]:
    """Do without the LSTM of oneDNN, which does not say what it keeps: step by step everything is seen."""
    was_on = torch.backends.mkldnn.set_flags(False)[0]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(was_on)  # type: ignore[no-untyped-call]


def _any_step(num_samples: int, window: int, shape: Sequence[int]) -> Batch:
    rows_RF = torch.empty(num_samples + window - 1, *shape)
    labels_S = torch.zeros(num_samples, dtype=torch.int64)
    return Batch(rows_RF, torch.arange(num_samples), labels_S, window, is_dense=True)


def _train(run: Run, step: Batch) -> None:
    """Go through the first part of a step, and two micro-batches of it: those after them need no more."""
    part = next(encode_once(step, run.micro_batch, run.is_sharing))
    # Once more with gradients that are there from the start, as they are later in a longer step.
    halves = Halves(run)
    factors_S = torch.ones(len(step), dtype=run.dtype)
    for _ in range(1 if len(step) <= run.micro_batch else 2):
        shared = Shared(halves, part.rows_RF.clone(), part)  # clone: as uploaded
        for first in range(0, min(len(part), 2 * run.micro_batch), run.micro_batch):
            last = min(len(part), first + run.micro_batch)
            shared.train(first, step.labels_B[first:last], factors_S[first:last])
        shared.backward()


def _materialise(model: nn.Module) -> None:
    """Put tensors of the mode that is on in the place of those without a device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive. most: bytes, at the fullest moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive: dict[int, int] = {}
        self._bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._bytes += self._alive[key]
            self.most = max(self.most, self._bytes)
            weakref.finalize(storage, self._lose, key)

    def _lose(self, key: int) -> None:
        self._bytes -= self._alive.pop(key)


class _Nothing:
    """A split that nobody reads."""

    def __len__(self) -> int:
        return 1

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Any:
        raise NotImplementedError
