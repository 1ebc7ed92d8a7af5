"""Small runs on samples in memory: the whole trainer without files to read."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.jobs.config import JobRequest
from worker.engine.events import Tick
from worker.engine.loop import fit
from worker.engine.resolve import Resolved, resolve
from worker.engine.run import Run, build_run
from worker.engine.samples import Splits
from worker.stream.batch import Batch

WINDOW = 4
SHAPE = (2, 6)
NUM_CLASSES = 4
WEIGHTS = [1.0, 10.0, 10.0, 20.0]

MLP = {"name": "mlp", "d_model": 8, "hidden": 8, "dropout": 0.0}
VIVIT = {"name": "vivit", "d_model": 8, "heads": 2, "layers": 2, "dropout": 0.0}


@dataclass(frozen=True)
class InMemory:
    """Consecutive windows over rows held in memory. stride: rows between the ends of neighbouring windows."""

    rows_RF: Tensor
    labels_N: Tensor
    stride: int = 1

    def __len__(self) -> int:
        return len(self.labels_N)

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Generator[Batch, None, None]:
        for first in range(skip, len(self), size):
            count = min(size, len(self) - first)
            starts_B = torch.arange(count) * self.stride
            rows_RF = self.rows_RF[first * self.stride :][: int(starts_B[-1]) + WINDOW]
            yield Batch(rows_RF, starts_B, self.labels_N[first : first + count], WINDOW, self.stride == 1)

    def windows(self) -> Tensor:
        """Copy all windows out: [N, T, *shape]."""
        index = torch.arange(len(self)).unsqueeze(1) * self.stride + torch.arange(WINDOW)
        return self.rows_RF[index]


def make_samples(count: int, *, seed: int = 0, stride: int = 1) -> InMemory:
    """Make random samples whose labels can be learnt a little: 85 / 7 / 6 / 2 % as in real books."""
    generator = torch.Generator().manual_seed(seed)
    rows_RF = torch.randn((count - 1) * stride + WINDOW, *SHAPE, generator=generator)
    chance_N = torch.rand(count, generator=generator)
    labels_N = torch.bucketize(chance_N, torch.tensor([0.85, 0.92, 0.98]))
    ends_N = torch.arange(count) * stride + WINDOW - 1
    rows_RF[ends_N, 0, 0] += labels_N.float()
    return InMemory(rows_RF, labels_N, stride)


def make_request(*, model: dict[str, Any] = MLP, **sections: Any) -> JobRequest:
    """Make a small job; `training` is merged into one thread and three epochs."""
    training = {"threads": 1, "epochs": 3, **sections.pop("training", {})}
    body = {"data": {"path": "demo", "window": WINDOW}, "model": model, "device": "cpu"}
    return JobRequest.model_validate({**body, **sections, "training": training}, strict=False)


def make_run(
    request: JobRequest | None = None,
    *,
    train: InMemory | None = None,
    val: InMemory | None = None,
    test: InMemory | None = None,
    dtype: torch.dtype = torch.float32,
    directory: Path | None = None,
    resolved: Resolved | None = None,
    **extra: Any,
) -> Run:
    """Build a run of 64 training and 21 validation samples unless given."""
    request = request or make_request()
    splits = Splits(train or make_samples(64), val or make_samples(21, seed=1), test)
    return build_run(
        request,
        resolved or resolve(request, num_classes=NUM_CLASSES),
        shape=SHAPE,
        num_classes=NUM_CLASSES,
        splits=splits,
        directory=directory or Path(tempfile.mkdtemp()),
        dtype=dtype,
        **extra,
    )


def train(run: Run) -> list[Any]:
    """Train to the end; all events but ticks."""
    return [event for event in fit(run) if not isinstance(event, Tick)]


def weights_of(run: Run) -> Tensor:
    """Lay all weights out as one float64 vector, detached."""
    return torch.cat([p.detach().double().flatten().clone() for p in run.model.parameters()])
