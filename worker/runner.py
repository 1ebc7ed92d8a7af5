"""One attempt, in its own process: prepare, fit, and an ending for everything that can happen.

Reads nothing but its assignment and the data; never opens the database. Imported by the fork server, so that
a runner starts warm: imports only, no tensor operation, no thread, no CUDA.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import sys
import traceback
from collections.abc import Callable, Generator
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch
import torch._dynamo  # AdamW's constructor pulls it in: 0.75 s, better before the fork

from app.datasets.preflight import plan_document
from app.datasets.schema import Dataset, open_dataset
from app.datasets.split import SplitPlan, plan_split
from app.errors import InvalidData, ServiceError
from app.jobs.config import JobRequest, canonical, config_hash
from app.jobs.states import ENDINGS
from worker.assignment import Assignment
from worker.engine.errors import ConfigInvalid, GpuOutOfMemory
from worker.engine.events import (
    Ended,
    Event,
    PhaseChanged,
    Prepared,
    Warned,
    encode,
)
from worker.engine.loop import fit
from worker.engine.resolve import Resolved, resolve, resolve_class_weights
from worker.engine.run import Memory, Run, build_run
from worker.engine.samples import Splits
from worker.entry import Orders
from worker.models.base import num_parameters
from worker.models.build import flops_per_sample
from worker.report.log import Log
from worker.report.plot import Plot
from worker.stream.stream import Stream
from worker.telemetry import Gpu, ram, torch_peak

Send = Callable[[bytes], None]


def run(assignment: Assignment, send: Send, orders: Orders) -> None:
    """Run one attempt to its end: every event to the supervisor and to the run's own log and picture."""
    log = Log(sys.stdout)
    plot = Plot(assignment.plot, _title(assignment))
    ended = Ended("internal", "The attempt ended without a verdict.")
    try:
        for event in _attempt(assignment):
            if isinstance(event, Ended):
                ended = event
                break
            log.write(event)
            plot.write(event)
            send(encode(event))
            if orders.stop is not None:
                ended = Ended("user", "Stopped as ordered.", stopped=orders.stop)
                break
    except Exception as error:  # the process boundary: whatever it is becomes a recorded ending
        ended = _verdict(error)
        if ended.reason == "internal":
            traceback.print_exc()
        else:
            print(f"[ERROR] {ended.message}" + (f" {ended.hint}" if ended.hint else ""), flush=True)
    log.end("queued" if ended.stopped in ("pause", "preempt") else ENDINGS[ended.reason], ended)
    send(encode(ended))


def _attempt(assignment: Assignment) -> Generator[Event, None, None]:
    request = JobRequest.model_validate_json(json.dumps(assignment.config))
    yield PhaseChanged("preparing")
    dataset = open_dataset(assignment.data_root, request.data)
    if assignment.data_fingerprint not in (None, dataset.fingerprint):
        raise _DataChanged(
            f"The files of {request.data.path!r} are not those the job was submitted with.",
            "Submit the job again to train on the data as they are now.",
        )
    weights = request.loss.class_weights
    plan = plan_split(dataset, request.data, class_weights=weights if isinstance(weights, list) else None)
    for code, message in (*dataset.warnings, *plan.warnings):
        yield Warned(code, message)
    resolved = _resolved(assignment, request, plan)
    run = _build(assignment, request, dataset, plan, resolved)
    yield Prepared(
        {**asdict(resolved), **_resolved_data(dataset, plan)},
        plan_document(request, plan, _model_size(request, dataset, plan, run)),
    )
    yield from fit(run)


class _DataChanged(ServiceError):
    status, code = 409, "data_changed"


def _resolved(assignment: Assignment, request: JobRequest, plan: SplitPlan) -> Resolved:
    if assignment.resolved is None:
        return resolve(request, num_classes=plan.num_classes)
    return Resolved(**{field.name: assignment.resolved[field.name] for field in fields(Resolved)})


def _resolved_data(dataset: Dataset, plan: SplitPlan) -> dict[str, Any]:
    return {
        "fingerprint": dataset.fingerprint,
        "features": list(dataset.features.columns),
        "shape": list(dataset.features.shape),
        "label_end": dataset.label_end,
        "horizon_s": dataset.horizon_s,
        "classes": list(plan.classes),
        "cuts_ns": list(plan.cuts_ns),
    }


def _build(
    assignment: Assignment, request: JobRequest, dataset: Dataset, plan: SplitPlan, resolved: Resolved
) -> Run:
    streams = {
        part: Stream(dataset, plan, part, budget_bytes=assignment.stream_budget, verify_checksums=True)
        for part in plan.parts
    }
    return build_run(
        request,
        resolved,
        shape=dataset.features.shape,
        num_classes=plan.num_classes,
        splits=Splits(streams["train"], streams["val"], streams.get("test")),
        directory=assignment.directory,
        memory=_Memory(),
        sidecar=_sidecar(assignment, request, dataset, plan, resolved),
        vram_fraction=assignment.vram_fraction,
    )


def _model_size(request: JobRequest, dataset: Dataset, plan: SplitPlan, run: Run) -> dict[str, int | None]:
    return {
        "parameters": num_parameters(run.model),
        "flops_per_sample": flops_per_sample(
            request.model, window=plan.window, shape=dataset.features.shape, num_classes=plan.num_classes
        ),
    }


def _sidecar(
    assignment: Assignment, request: JobRequest, dataset: Dataset, plan: SplitPlan, resolved: Resolved
) -> dict[str, Any]:
    """Describe a best checkpoint to whoever finds it: all that the engine itself cannot know."""
    return {
        "version": 1,
        "job_id": assignment.job_id,
        "attempt": assignment.attempt,
        "config_hash": config_hash(request),
        "resolved": {**asdict(resolved), **_resolved_data(dataset, plan)},
        "classes": list(plan.classes),
        "data_fingerprint": dataset.fingerprint,
        "comparison_key": comparison_key(request, dataset, plan),
        "versions": {
            "saimp": version("saimp-train"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def comparison_key(request: JobRequest, dataset: Dataset, plan: SplitPlan) -> str:
    """Name what two validation losses must share to be comparable. Contract, section 4, "Champion"."""
    data = request.data
    shared = {
        "fingerprint": dataset.fingerprint,
        "cuts_ns": plan.cuts_ns,
        "window": data.window,
        "stride": data.stride,
        "max_gap_s": data.max_gap_s,
        "embargo_s": data.embargo_s,
        "horizon_s": dataset.horizon_s,
        "label_end": dataset.label_end,
        "label": data.label,
        "loss": {
            **request.loss.model_dump(mode="json"),
            "class_weights": resolve_class_weights(request.loss.class_weights, plan.num_classes),
        },
    }
    return hashlib.sha256(canonical(shared).encode()).hexdigest()


class _Memory:
    """What a metric row says of memory, on this machine."""

    def __init__(self) -> None:
        self._gpu = Gpu()

    def __call__(self) -> Memory:
        machine, vram = ram(), self._gpu.read()
        return {
            "ram_used": machine.used,
            "ram_total": machine.total,
            "vram_used": vram.used if vram else None,
            "vram_total": vram.total if vram else None,
            "vram_torch_peak": torch_peak(),
        }


def _verdict(error: Exception) -> Ended:
    """Give every exception its reason code."""
    match error:
        case _DataChanged():
            return Ended("data_changed", error.message, error.hint)
        case InvalidData():
            return Ended("data_invalid", error.message, error.hint)
        case ConfigInvalid():
            return Ended("config_invalid", error.message, error.hint)
        case GpuOutOfMemory():
            return Ended("gpu_out_of_memory", error.message, error.hint, evidence=error.evidence)
        case torch.OutOfMemoryError():
            return Ended(
                "gpu_out_of_memory",
                f"The GPU ran out of memory: {str(error).splitlines()[0]}",
                "Lower the model's size or data.window, or close what else uses the GPU.",
            )
        case MemoryError():
            return Ended(
                "host_out_of_memory",
                "The machine ran out of memory.",
                "Lower SAIMP_STREAM_BUDGET or training.batch_size, or close other programs.",
            )
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            return Ended(
                "storage_error",
                f"A file could not be written: {error.strerror}.",
                "Free space on the disk of the data and logs folders, then submit the job again.",
            )
        case _:
            return Ended(
                "internal",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                "The traceback is at the end of the job's log.",
            )


def _title(assignment: Assignment) -> str:
    name = assignment.config.get("name")
    return f"{name} · {assignment.job_id}" if name else assignment.job_id
