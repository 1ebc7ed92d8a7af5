"""One optimizer step: the samples of one effective batch, a micro-batch at a time, all or nothing.

Shapes: S samples of the step, B samples of a micro-batch, R rows, T rows in a window, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from worker.engine.errors import GpuOutOfMemory
from worker.engine.events import OomRecovered, Tick
from worker.engine.loss import coefficients
from worker.engine.readback import Readback
from worker.engine.run import Attempted, Run
from worker.engine.tally import Counted
from worker.models.base import gather_windows
from worker.stream.batch import Batch

TICK = Tick()


def train_step(run: Run, samples: Batch, epoch: int) -> Generator[Tick | OomRecovered, None, Counted | None]:
    """Train on the samples of one effective batch; return what was counted, or None for a step of weight 0.

    Transactional: out of GPU memory, all but the weights goes back to where it was and the same samples are
    replayed in smaller micro-batches. Raises GpuOutOfMemory at the smallest.
    """
    if run.loss.total_weight(samples.labels_B) == 0:
        run.settle()
        run.skipped_steps += 1
        return None
    factors_S = coefficients(
        run.loss,
        samples.labels_B,
        run.request.training.loss_reduction,
        run.resolved.nominal_batch,
        run.resolved.effective_batch,
    )
    before = _Before.of(run)
    while True:
        try:
            counted = yield from _accumulate(run, samples, factors_S)
            grad_norm = _unscale_and_clip(run)
            break
        except torch.OutOfMemoryError as error:
            message = str(error).partition("\n")[0]
        # Outside the except clause: the traceback, and the tensors it holds, are gone.
        before.restore(run)
        run.settle()
        step_down(run, message)
        yield OomRecovered(epoch, run.num_steps + 1, run.micro_batch, message)
    _apply(run, grad_norm)
    return counted


def encode_once(samples: Batch, micro_batch: int, is_sharing: bool) -> Iterator[Batch]:
    """Cut a step into parts whose rows are encoded together, whole micro-batches each.

    Gradients are sums, so it makes no difference to them. A part never has more rows than the windows of one
    micro-batch copied out (two, for a micro-batch of 1): memory stays below the plain loop's.
    """
    window = samples.window
    limit = max(micro_batch, 2) * window if is_sharing else micro_batch * window
    first = 0
    while first < len(samples):
        count = (
            max(micro_batch, (limit - window + 1) // micro_batch * micro_batch) if is_sharing else micro_batch
        )
        part = samples.narrow(first, min(count, len(samples) - first))
        while count > micro_batch and part.rows_RF.shape[0] > limit:
            count = max(micro_batch, count // 2 // micro_batch * micro_batch)
            part = samples.narrow(first, min(count, len(samples) - first))
        yield part
        first += len(part)


def step_down(run: Run, message: str) -> None:
    """Take the next rung of the OOM ladder for training. Raises GpuOutOfMemory when there is none."""
    oom = run.request.oom
    if oom.recover and run.micro_batch > oom.min_batch_size:
        run.micro_batch = max(oom.min_batch_size, run.micro_batch // 2)
    elif oom.recover and run.is_sharing:
        run.is_sharing = False
    else:
        raise out_of_memory(run, message, during="training")


def out_of_memory(run: Run, message: str, *, during: str) -> GpuOutOfMemory:
    """Describe a GPU that is too small, with what was tried."""
    evidence: dict[str, Any] = {
        "during": during,
        "batch_size": run.micro_batch,
        "eval_batch_size": run.eval_batch,
        "effective_batch": run.resolved.effective_batch,
        "precision": run.precision.name,
        "device_message": message,
    }
    if run.device.type == "cuda":
        evidence["vram_torch_peak"] = torch.cuda.max_memory_allocated(run.device)
        evidence["vram_total"] = torch.cuda.get_device_properties(run.device).total_memory
    return GpuOutOfMemory(
        f"The GPU ran out of memory during {during} with a micro-batch of {run.micro_batch}.",
        "Lower data.window or the model's size, or close what else uses the GPU."
        if run.request.oom.recover
        else "Set oom.recover to true, or lower training.batch_size.",
        evidence,
    )


@dataclass(frozen=True, slots=True)
class _Before:
    """What a step changes besides gradients: random states and the model's buffers."""

    cpu_rng: Tensor
    cuda_rng: Tensor | None
    buffers: list[Tensor]

    @classmethod
    def of(cls, run: Run) -> _Before:
        is_cuda = run.device.type == "cuda"
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state(run.device) if is_cuda else None,
            [buffer.clone() for buffer in run.model.buffers()],
        )

    def restore(self, run: Run) -> None:
        run.optimizer.zero_grad(set_to_none=True)
        run.precision.forget_step()
        torch.set_rng_state(self.cpu_rng)
        for buffer, saved in zip(run.model.buffers(), self.buffers, strict=True):
            buffer.copy_(saved)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, run.device)
            torch.cuda.empty_cache()


def _accumulate(run: Run, samples: Batch, factors_S: Tensor) -> Generator[Tick, None, Counted]:
    """Run the micro-batches forward and backward: the gradients are those of the whole effective batch."""
    labels_S = run.upload(samples.labels_B)
    factors_S = run.precision.scaler.scale(run.upload(factors_S))
    losses: list[Tensor] = []
    predictions: list[Tensor] = []
    done = 0
    for part in encode_once(samples, run.micro_batch, run.is_sharing):
        rows_RF = run.upload(part.rows_RF).to(run.dtype)
        with run.precision.autocast():
            embedded_RD = run.model.encode(rows_RF)
        # Full precision: up to T windows add their gradients to one row.
        embedded_RD = embedded_RD.to(run.dtype)
        is_shared = len(part) > run.micro_batch
        # The graph of shared rows is walked once, after every micro-batch has added its gradient here.
        shared_RD = embedded_RD.detach().requires_grad_() if is_shared else embedded_RD
        shared = replace(part, rows_RF=shared_RD)
        for first in range(0, len(part), run.micro_batch):
            micro = shared.narrow(first, min(run.micro_batch, len(part) - first))
            last = done + len(micro)
            with run.precision.autocast():
                logits_BK = run.model.head(
                    gather_windows(micro.rows_RF, micro.starts_B, micro.window, micro.is_dense)
                )
            losses_B = run.loss.per_sample(logits_BK, labels_S[done:last])
            torch.autograd.backward(losses_B, factors_S[done:last])
            losses.append(losses_B.detach())
            predictions.append(logits_BK.detach().argmax(dim=-1))
            done = last
            yield TICK
        if is_shared:
            torch.autograd.backward(embedded_RD, shared_RD.grad)
    return Counted(torch.cat(losses), torch.cat(predictions), labels_S)


def _unscale_and_clip(run: Run) -> Tensor:
    """Bring the gradients to their true size, clip them if asked, and return their norm before clipping."""
    run.precision.scaler.unscale_(run.optimizer)
    parameters = list(run.model.parameters())
    grad_norm = get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if run.request.training.clip_grad_norm is not None:
        clip_grads_with_norm_(parameters, run.request.training.clip_grad_norm, grad_norm, foreach=True)
    return grad_norm


def _apply(run: Run, grad_norm: Tensor) -> None:
    """Step the optimizer; the scaler leaves everything as it is when a gradient is not finite."""
    run.settle()
    lr = run.schedule.at(run.num_steps + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    try:
        run.precision.scaler.step(run.optimizer)
    except torch.OutOfMemoryError as error:
        # Half-applied, perhaps: there is no way back inside this attempt.
        raise out_of_memory(run, str(error).partition("\n")[0], during="the optimizer step") from error
    run.precision.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.attempted = Attempted(lr, Readback(grad_norm))
