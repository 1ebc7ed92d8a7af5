"""One optimizer step: the samples of one effective batch, a micro-batch at a time, all or nothing.

Shapes: S samples of the step, B samples of a micro-batch, R rows, T rows in a window, D embedding, K classes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

from app.failpoints import failpoint
from worker.engine.errors import GpuOutOfMemory, RestartSmaller, first_line, is_gpu_exhausted
from worker.engine.events import OomRecovered, Tick, Warned
from worker.engine.graphs import CaptureFailed
from worker.engine.halves import Halves, Shared
from worker.engine.loss import coefficients
from worker.engine.passes import CompileFailed
from worker.engine.readback import Readback
from worker.engine.run import Attempted, Run
from worker.engine.tally import Counted
from worker.stream.batch import Batch

TICK = Tick()

During = Literal["training", "evaluation", "the optimizer step"]


def train_step(
    run: Run, samples: Batch, epoch: int
) -> Generator[Tick | OomRecovered | Warned, None, Counted | None]:
    """Train on the samples of one effective batch; return what was counted, or None for a step of weight 0.

    Transactional: out of GPU memory, all but the weights goes back to where it was and the same samples are
    replayed in smaller micro-batches. Raises GpuOutOfMemory at the smallest, RestartSmaller when memory ends
    in the optimizer step: the weights may be half stepped then, and a resume checkpoint is the way back.
    """
    factors_S = coefficients(
        run.loss,
        samples.labels_B,
        run.request.training.loss_reduction,
        run.resolved.nominal_batch,
        run.resolved.effective_batch,
    )
    if not factors_S.any():
        run.settle()
        run.skipped_steps += 1
        run.num_attempts += 1
        return None
    before = _Before.of(run)
    while True:
        try:
            counted = yield from _accumulate(run, samples, factors_S)
            grad_norm = _unscale_and_clip(run)
            break
        except CompileFailed as error:
            failed, message = "compile", first_line(error)
        except CaptureFailed as error:
            failed, message = "capture", first_line(error)
        except RuntimeError as error:
            if not is_gpu_exhausted(error):
                raise
            failed, message = "memory", first_line(error)
        # Outside the except clause: the traceback, and the tensors it holds, are gone.
        before.restore(run)
        if failed == "memory":
            run.settle()
            step_down(run, message, during="training")
            yield OomRecovered(epoch, run.num_steps + 1, run.rung, message)
        elif failed == "capture":
            run.graphs.stop()
            yield Warned("cuda_graphs_failed", f"CUDA graphs cannot be had, training is slower: {message}")
        else:
            run.passes.stop_compiling()
            yield Warned("compile_failed", f"The model does not compile and runs as it is: {message}")
    try:
        _apply(run, grad_norm)
    except RuntimeError as error:
        if not is_gpu_exhausted(error):
            raise
        message = first_line(error)
    else:
        run.largest_fit = max(run.largest_fit, run.micro_batch)
        return counted
    step_down(run, message, during="the optimizer step")
    yield OomRecovered(epoch, run.num_steps + 1, run.rung, message, during="the optimizer step")
    raise RestartSmaller(message)


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


def step_down(run: Run, message: str, *, during: During) -> None:
    """Take the next rung of the OOM ladder for training. Raises GpuOutOfMemory when there is none."""
    oom = run.request.oom
    if oom.recover and run.micro_batch > oom.min_batch_size:
        run.micro_batch = max(oom.min_batch_size, run.micro_batch // 2)
    elif oom.recover and run.is_sharing:
        run.is_sharing = False
    elif oom.recover and not run.is_recomputing:
        run.is_recomputing = True
    else:
        raise out_of_memory(run, message, during=during)


def out_of_memory(run: Run, message: str, *, during: During) -> GpuOutOfMemory:
    """Describe a GPU that is too small, with what was tried."""
    is_cuda = run.device.type == "cuda"
    evidence: dict[str, Any] = {
        "during": during,
        "batch_size": run.eval_batch if during == "evaluation" else run.micro_batch,
        "largest_batch_that_fits": run.largest_fit or None,  # by a whole step that went through
        "effective_batch": run.resolved.effective_batch,
        "activation_checkpointing": run.is_recomputing,
        "precision": run.precision.name,
        "vram_torch_peak": torch.cuda.max_memory_allocated(run.device) if is_cuda else None,
        "vram_total": torch.cuda.get_device_properties(run.device).total_memory if is_cuda else None,
        "device_message": message,
    }
    fits = f"the largest that went through is {run.largest_fit}" if run.largest_fit else "none went through"
    if run.request.oom.recover:
        hint = "Lower data.window or the model's size, or close what else uses the GPU."
    else:
        hint = "Set oom.recover to true, or lower training.batch_size."
    return GpuOutOfMemory(
        f"The GPU ran out of memory during {during} with a batch of {evidence['batch_size']}; {fits}.",
        hint,
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
            [buffer.clone() for buffer in run.buffers],
        )

    def restore(self, run: Run) -> None:
        run.graphs.forget()  # they hold memory, and write to the gradients that go now
        run.optimizer.zero_grad(set_to_none=True)
        run.precision.forget_step()
        torch.set_rng_state(self.cpu_rng)
        for buffer, saved in zip(run.buffers, self.buffers, strict=True):
            buffer.copy_(saved)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, run.device)
            torch.cuda.empty_cache()


def _accumulate(run: Run, samples: Batch, factors_S: Tensor) -> Generator[Tick, None, Counted]:
    """Run the micro-batches forward and backward: the gradients are those of the whole effective batch."""
    labels_S = run.upload(samples.labels_B)
    factors_S = run.precision.scale(run.upload(factors_S))
    # Parts are whole micro-batches, so these are theirs, in turn.
    cut = zip(torch.split(labels_S, run.micro_batch), torch.split(factors_S, run.micro_batch), strict=True)
    halves = Halves(run)
    losses: list[Tensor] = []
    logits: list[Tensor] = []
    done = 0
    for part in encode_once(samples, run.micro_batch, run.is_sharing):
        shared = Shared(halves, run.upload(part.rows_RF).to(run.dtype), part)
        for first in range(0, len(part), run.micro_batch):
            failpoint("train.micro_batch")
            labels_B, factors_B = next(cut)
            if run.masks is not None:
                run.masks.begin(run.num_attempts, done, len(labels_B))
                done += len(labels_B)
            losses_B, logits_BK = shared.train(first, labels_B, factors_B)
            losses.append(losses_B)
            logits.append(logits_BK)
            yield TICK
        shared.backward()
    return Counted(torch.cat(losses), torch.cat(logits).argmax(dim=-1), labels_S)


def _unscale_and_clip(run: Run) -> Tensor:
    """Bring the gradients to their true size, clip them if asked, and return their norm before clipping."""
    run.precision.unscale(run.optimizer)
    grads = [p.grad for p in run.parameters if p.grad is not None]
    # torch.nn.utils.get_total_norm, less its bookkeeping of devices and formats.
    grad_norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    if run.request.training.clip_grad_norm is not None:
        clip_grads_with_norm_(run.parameters, run.request.training.clip_grad_norm, grad_norm, foreach=True)
    return grad_norm


def _apply(run: Run, grad_norm: Tensor) -> None:
    """Step the optimizer; a gradient that is not finite leaves everything as it is."""
    run.settle()
    lr = run.schedule.at(run.num_steps + 1)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.precision.step(run.optimizer, grad_norm)
    run.clear_gradients()
    run.num_attempts += 1
    run.attempted = Attempted(lr, Readback(grad_norm))
