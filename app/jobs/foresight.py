"""What a job will need, before it runs: memory by a trace of one step, time by jobs like it that have run.

A trace knows no allocator and no kernels of a GPU; what it says is corrected by what a job of the same model
really took on the same GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.errors import Problem
from app.jobs.config import JobRequest, stored
from app.jobs.queue import Row
from app.jobs.sizes import Cut, Sizes, batch_statistics, sizes

# A job is refused only beyond any error of the estimate: out of memory, a job goes down to what fits.
CERTAINLY = 1.25
# What a measurement may correct: beyond it, something else was measured.
LEAST_CORRECTION, MOST_CORRECTION = 0.5, 4.0
GB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU a job would run on. budget_bytes: what a job may take of it."""

    name: str
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Foresight:
    """seconds_per_epoch: null when no job like it has run; memory_bytes: of a step as configured."""

    sizes: Sizes
    memory_bytes: int | None = None
    seconds_per_epoch: float | None = None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()


def foresee(
    request: JobRequest,
    *,
    shape: Sequence[int],
    num_classes: int,
    num_windows: int,
    gpu: Gpu | None,
    past: Sequence[Row],
    custom_prefixes: Sequence[str] = (),
) -> Foresight:
    """Say what a job will need. num_windows: of the training split; gpu: null = it would run on a CPU.

    past: jobs of the same model that have trained, the newest first; see `Queue.trained`.
    """
    is_cuda = gpu is not None or request.device.startswith("cuda")
    precision = request.precision if request.precision != "auto" else "fp16" if is_cuda else "fp32"
    cuts = _cuts(request) if gpu else _cuts(request)[:1]
    found = sizes(
        request,
        shape=shape,
        num_classes=num_classes,
        precision=precision,
        cuts=cuts,
        custom_prefixes=custom_prefixes,
    )
    warning = batch_statistics(found.batch_layers)
    foresight = Foresight(
        found,
        seconds_per_epoch=_seconds_per_epoch(request, precision, shape, num_windows, gpu, past),
        warnings=(warning,) if warning else (),
    )
    step_bytes = [count for count in found.step_bytes if count is not None]
    if len(step_bytes) < len(cuts):
        return foresight
    if gpu is None:
        return replace(foresight, memory_bytes=step_bytes[0])
    factor = _correction(gpu, past, custom_prefixes)
    asked, one, least = (round(count * factor) for count in step_bytes)
    foresight = replace(foresight, memory_bytes=asked)
    batch_size = cuts[0].batch_size
    fits = _largest(batch_size, asked, one, gpu.budget_bytes)
    count = f"about {fits}" if fits else "not one"
    needed = (
        f"a step in micro-batches of {batch_size} takes about {asked / GB:.1f} GB, and a job may take"
        f" {gpu.budget_bytes / GB:.1f} GB of the {gpu.name}: {count} would fit"
    )
    if least > CERTAINLY * gpu.budget_bytes:
        pointer, hint = "/model", "Lower data.window or the model's size."
        if fits:
            pointer = "/training/batch_size"
            hint = f"Lower it to {fits}, with more accumulation_steps; oom.recover would find it by itself."
        return replace(foresight, problems=(Problem(pointer, "will_not_fit", needed, hint),))
    if asked > gpu.budget_bytes:
        sentence = f"{needed[0].upper()}{needed[1:]}. The job goes down to what does, with the same curve."
        return replace(foresight, warnings=(*foresight.warnings, ("will_not_fit", sentence)))
    return foresight


def _cuts(request: JobRequest) -> list[Cut]:
    """Say how a step is cut as asked, for one window at a time, and at the foot of the OOM ladder."""
    training, oom = request.training, request.oom
    asked = Cut(training.nominal_batch, True, training.activation_checkpointing)
    foot = Cut(min(oom.min_batch_size, asked.batch_size), False, True)
    return [asked, replace(asked, batch_size=1), foot if oom.recover else asked]


def _largest(batch_size: int, of_asked: int, of_one: int, budget_bytes: int) -> int:
    """Find the largest micro-batch that fits, on the line through two that are known; 0 = none."""
    if of_asked <= budget_bytes:
        return batch_size
    if of_one > budget_bytes or batch_size == 1:
        return 0
    of_each = (of_asked - of_one) / (batch_size - 1)
    return 1 + math.floor((budget_bytes - of_one) / of_each)


def _correction(gpu: Gpu, past: Sequence[Row], custom_prefixes: Sequence[str]) -> float:
    """Compare what the last job on this GPU took with what a trace says of it."""
    for row in past:
        resolved: Mapping[str, Any] = row.resolved
        if resolved.get("gpu") != gpu.name or row.vram_peak is None or row.has_descended:
            continue
        cut = Cut(
            resolved["batch_size"],
            resolved.get("share_rows", True),
            resolved.get("activation_checkpointing", False),
        )
        said = sizes(
            stored(row.config),
            shape=resolved["shape"],
            num_classes=len(resolved["classes"]),
            precision=resolved["precision"],
            cuts=[cut],
            custom_prefixes=custom_prefixes,
        )
        if said.step_bytes and said.step_bytes[0]:
            measured: float = row.vram_peak / said.step_bytes[0]
            return min(MOST_CORRECTION, max(LEAST_CORRECTION, measured))
    return 1.0


def _seconds_per_epoch(
    request: JobRequest,
    precision: str,
    shape: Sequence[int],
    num_windows: int,
    gpu: Gpu | None,
    past: Sequence[Row],
) -> float | None:
    """Take the time of the last job that differs in nothing that costs time, by the windows it trained on."""
    wanted = {
        "gpu": gpu.name if gpu else None,
        "precision": precision,
        "shape": list(shape),
        "nominal_batch": request.training.nominal_batch,
        "effective_batch": request.training.samples_per_step,
    }
    model, window = request.model.model_dump(mode="json"), request.data.window
    for row in past:
        resolved = {"gpu": None, **row.resolved}
        is_alike = all(resolved[name] == value for name, value in wanted.items())
        if (
            is_alike
            and row.config["model"] == model
            and row.config["data"]["window"] == window
            and row.windows
        ):
            return float(row.epoch_s * num_windows / row.windows)
    return None
