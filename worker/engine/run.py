"""One run: what is trained on what, by which rules, and how far it is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from app.jobs.config import JobRequest
from worker.engine.build import Schedule, build_optimizer, build_schedule
from worker.engine.events import BestFile
from worker.engine.loss import Loss, build_loss
from worker.engine.precision import Precision
from worker.engine.readback import Readback
from worker.engine.resolve import Resolved
from worker.engine.samples import Splits
from worker.engine.stopping import Stopping
from worker.models import SequenceModel, build_model

# fp16 halves its scale at each non-finite step: from 2^16 it passes 1 after 16 of them.
MAX_NON_FINITE_STEPS = 32


class Memory(TypedDict, total=False):
    """Memory in bytes, as the metric rows carry it; None or absent where there is no such thing."""

    ram_used: int | None
    ram_total: int | None
    vram_used: int | None
    vram_total: int | None
    vram_torch_peak: int | None


def no_memory() -> Memory:
    """Report nothing."""
    return {}


@dataclass(frozen=True, slots=True)
class Attempted:
    """An optimizer step the device may not have finished: applied if its gradient norm is finite."""

    lr: float
    grad_norm: Readback


@dataclass(frozen=True, slots=True)
class Applied:
    """An optimizer step that changed the weights; its gradient norm is the one before clipping."""

    lr: float
    grad_norm: float


@dataclass(slots=True)
class Run:
    """Everything `fit` needs, and the little that changes as it goes."""

    request: JobRequest
    resolved: Resolved
    model: SequenceModel
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    splits: Splits
    stopping: Stopping
    device: torch.device
    dtype: torch.dtype
    directory: Path
    memory: Callable[[], Memory]
    sidecar: Mapping[str, Any]

    micro_batch: int  # samples that go through the head at once; the OOM ladder lowers it
    eval_batch: int  # likewise in evaluation
    is_sharing: bool = True  # rows are encoded once for several micro-batches
    num_steps: int = 0  # optimizer steps applied
    skipped_steps: int = 0  # of this epoch: total weight 0, or gradients not finite
    non_finite_streak: int = 0
    attempted: Attempted | None = None
    applied: Applied | None = None
    best: BestFile | None = field(default=None)

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def is_diverging(self) -> bool:
        return self.non_finite_streak >= MAX_NON_FINITE_STEPS

    def upload(self, tensor: Tensor) -> Tensor:
        """Bring a host tensor to the device without waiting for what the device has still to do."""
        if self.device.type == "cpu":
            return tensor
        # From pageable memory, a copy of more than 64 KiB would wait.
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def settle(self) -> None:
        """Learn what became of the last optimizer step. Schedule and counters see applied steps only."""
        if self.attempted is None:
            return
        grad_norm = self.attempted.grad_norm.value()
        if math.isfinite(grad_norm):
            self.num_steps += 1
            self.non_finite_streak = 0
            self.applied = Applied(self.attempted.lr, grad_norm)
        else:
            self.skipped_steps += 1
            self.non_finite_streak += 1
        self.attempted = None

    def free(self) -> None:
        """Give back what only training needs."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def build_run(
    request: JobRequest,
    resolved: Resolved,
    *,
    shape: Sequence[int],
    num_classes: int,
    splits: Splits,
    directory: Path,
    memory: Callable[[], Memory] = no_memory,
    sidecar: Mapping[str, Any] | None = None,
    vram_fraction: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """Set this process up for one job and build its run: seeded, on its device, nothing trained yet.

    shape: of one row; directory: where best checkpoints are written; sidecar: what the engine cannot know
    about a best checkpoint (classes, versions, fingerprint, comparison key); dtype: of weights and losses,
    float64 for reference runs.
    """
    device = torch.device(resolved.device)
    _set_up_process(request, resolved, device, vram_fraction)
    torch.manual_seed(request.training.seed)
    model = build_model(request.model, window=request.data.window, shape=shape, num_classes=num_classes)
    model = model.to(device=device, dtype=dtype)
    return Run(
        request=request,
        resolved=resolved,
        model=model,
        loss=build_loss(
            resolved.class_weights,
            num_classes=num_classes,
            label_smoothing=request.loss.label_smoothing,
            dtype=dtype,
            device=device,
        ),
        optimizer=build_optimizer(request.optimizer, model),
        schedule=build_schedule(request.schedule, request.optimizer.lr),
        precision=Precision(resolved.precision, device),
        splits=splits,
        stopping=Stopping(request.early_stopping.patience, request.early_stopping.min_delta),
        device=device,
        dtype=dtype,
        directory=directory,
        memory=memory,
        sidecar=sidecar or {},
        micro_batch=resolved.batch_size,
        eval_batch=resolved.eval_batch_size,
    )


def _set_up_process(
    request: JobRequest, resolved: Resolved, device: torch.device, vram_fraction: float
) -> None:
    is_deterministic = request.training.deterministic
    torch.set_num_threads(resolved.threads)
    torch.use_deterministic_algorithms(is_deterministic)
    if device.type != "cuda":
        return
    if is_deterministic:
        # cuBLAS reads it at its first handle; without it, deterministic mode refuses matrix products.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.deterministic = is_deterministic
    torch.backends.cudnn.benchmark = not is_deterministic
    torch.backends.cudnn.allow_tf32 = request.training.tf32
    torch.backends.cuda.matmul.allow_tf32 = request.training.tf32
    torch.cuda.set_per_process_memory_fraction(vram_fraction, device)
    torch.cuda.set_device(device)
