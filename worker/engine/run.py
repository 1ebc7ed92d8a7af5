"""One run: what is trained on what, by which rules, and how far it is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from app.jobs.config import JobRequest
from worker.engine.average import Average
from worker.engine.build import Schedule, build_optimizer, build_schedule
from worker.engine.events import BestFile, Rung
from worker.engine.graphs import CudaRecorder, Graphs
from worker.engine.keep import Keeper
from worker.engine.loss import Loss, build_loss
from worker.engine.passes import Passes
from worker.engine.precision import Precision
from worker.engine.readback import Readback
from worker.engine.resolve import Resolved
from worker.engine.samples import Splits
from worker.engine.stopping import Stopping
from worker.engine.upload import Upload
from worker.models import SequenceModel, build_model
from worker.models.attention import lay_out_keys
from worker.models.dropout import Masks, draw_from
from worker.models.normalizer import Scaling

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
    parameters: list[nn.Parameter]
    buffers: list[Tensor]
    average: Average | None  # of the weights; evaluated and saved in their place
    passes: Passes
    masks: Masks | None  # of dropout, when they must not depend on the micro-batch
    keeper: Keeper
    graphs: Graphs
    upload: Upload

    is_sharing: bool = True  # rows are encoded once for several micro-batches
    largest_fit: int = 0  # the largest micro-batch of a step that went through
    num_epochs: int = 0  # trained, validated and closed
    num_attempts: int = 0  # optimizer steps taken, applied or not
    num_steps: int = 0  # optimizer steps applied
    skipped_steps: int = 0  # of this epoch: total weight 0, or gradients not finite
    non_finite_streak: int = 0
    attempted: Attempted | None = None
    applied: Applied | None = None
    best: BestFile | None = None
    epoch_state: dict[str, Any] | None = None  # of an epoch that was interrupted

    @property
    def num_classes(self) -> int:
        return self.model.num_classes

    @property
    def is_diverging(self) -> bool:
        return self.non_finite_streak >= MAX_NON_FINITE_STEPS

    @property
    def num_applied(self) -> int:
        """Optimizer steps applied, the last one included: waits for its outcome, and changes nothing."""
        attempted = self.attempted
        is_applied = attempted is not None and math.isfinite(attempted.grad_norm.value())
        return self.num_steps + is_applied

    def request_checkpoint(self) -> None:
        """Have a resume checkpoint made at the next boundary; `is_checkpoint_requested` until then."""
        self.keeper.is_requested = True

    @property
    def is_recomputing(self) -> bool:
        """Whether activations are computed again in the backward pass, to save memory."""
        return self.passes.is_recomputing

    @is_recomputing.setter
    def is_recomputing(self, is_recomputing: bool) -> None:
        self.passes.is_recomputing = is_recomputing

    @property
    def rung(self) -> Rung:
        """Where on the OOM ladder the run stands."""
        return Rung(self.micro_batch, self.eval_batch, self.is_sharing, self.is_recomputing)

    def descend(self, rung: Rung) -> None:
        """Go down to a rung, from wherever the run stands: never up."""
        self.micro_batch = min(self.micro_batch, rung.batch_size)
        self.eval_batch = min(self.eval_batch, rung.eval_batch_size)
        self.is_sharing = self.is_sharing and rung.is_sharing
        self.is_recomputing = self.is_recomputing or rung.is_recomputing

    @property
    def is_checkpoint_requested(self) -> bool:
        return self.keeper.is_requested

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model have the weights to evaluate and save. Never hold it across a yield."""
        return self.average.in_place() if self.average else nullcontext()

    def settle(self) -> None:
        """Learn what became of the last optimizer step. Schedule and counters see applied steps only."""
        if self.attempted is None:
            return
        grad_norm = self.attempted.grad_norm.value()
        if math.isfinite(grad_norm):
            self.num_steps += 1
            self.non_finite_streak = 0
            self.applied = Applied(self.attempted.lr, grad_norm)
            if self.average is not None:
                self.average.advance()  # the weights are still those of that step
        else:
            self.skipped_steps += 1
            self.non_finite_streak += 1
        self.attempted = None

    def clear_gradients(self) -> None:
        """Make ready for the next step. Recordings add to the gradients where they are: these are zeroed."""
        if self.graphs.is_on:
            torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        else:
            for parameter in self.parameters:
                parameter.grad = None

    def free(self) -> None:
        """Give back what only training needs."""
        self.graphs.forget()
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
    clock: Callable[[], float] = time.monotonic,
    custom_prefixes: Sequence[str] = (),
    scaling: Scaling | None = None,
    model: SequenceModel | None = None,
) -> Run:
    """Set this process up for one job and build its run: seeded, on its device, nothing trained yet.

    shape: of one row; directory: where best checkpoints are written; sidecar: what the engine cannot know
    about a best checkpoint (classes, versions, fingerprint, comparison key); dtype: of weights and losses,
    float64 for reference runs; clock: when resume checkpoints are due; custom_prefixes: modules that custom
    models may come from; scaling: how features are normalised, kept in the model; model: taken as it is, when
    given.
    """
    device = torch.device(resolved.device)
    _set_up_process(request, resolved, device, vram_fraction)
    torch.manual_seed(request.training.seed)
    if model is None:
        model = build_model(
            request.model,
            window=request.data.window,
            shape=shape,
            num_classes=num_classes,
            allowed_prefixes=custom_prefixes,
            scaling=scaling,
        ).to(device=device, dtype=dtype)
    training = request.training
    parameters = list(model.parameters())
    masks = Masks(training.seed) if training.deterministic else None
    draw_from(model, masks)
    lay_out_keys(model, resolved.lays_out_keys)
    return Run(
        request=request,
        resolved=resolved,
        model=model,
        loss=build_loss(
            request.loss, resolved.class_weights, num_classes=num_classes, dtype=dtype, device=device
        ),
        optimizer=build_optimizer(request.optimizer, model),
        schedule=build_schedule(
            request.schedule,
            request.optimizer.lr,
            steps_per_epoch=-(-len(splits.train) // resolved.effective_batch),
            epochs=request.training.epochs,
        ),
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
        parameters=parameters,
        buffers=list(model.buffers()),
        average=Average(training.ema_decay, parameters) if training.ema_decay else None,
        passes=Passes(
            model, masks, is_recomputing=resolved.activation_checkpointing, is_compiled=training.compile
        ),
        masks=masks,
        keeper=Keeper(request.checkpoint.every_s, clock),
        graphs=Graphs(CudaRecorder if _is_recordable(request, device) else None),
        upload=Upload(device),
        is_sharing=resolved.share_rows,
    )


def _is_recordable(request: JobRequest, device: torch.device) -> bool:
    """Tell whether steps may be CUDA graphs: masks differ from step to step, compiled code differs anyway."""
    training = request.training
    return device.type == "cuda" and not (training.deterministic or training.compile)


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
