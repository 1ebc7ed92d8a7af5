"""One attempt, in its own process: prepare, fit, and an ending for everything that can happen.

Reads nothing but its assignment and the data; never opens the database. Imported by the fork server, so that
a runner starts warm: imports only, no tensor operation, no thread, no CUDA.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
import torch._dynamo  # AdamW's constructor pulls it in: 0.75 s, better before the fork

from app.datasets.errors import DataChanged, SourceUnavailable
from app.datasets.plans import planned
from app.datasets.preflight import plan_document
from app.datasets.schema import Dataset, open_dataset
from app.datasets.split import SplitPlan
from app.errors import InvalidData
from app.failpoints import failpoint
from app.jobs.comparison import comparison_key
from app.jobs.config import DataConfig, JobRequest, config_hash, stored
from app.jobs.sizes import batch_statistics
from app.jobs.states import ENDINGS, Status
from app.version import version_text
from worker.assignment import Assignment, Order, Weights
from worker.engine.errors import (
    ConfigInvalid,
    CorruptCheckpoint,
    GpuOutOfMemory,
    RestartSmaller,
    first_line,
    is_gpu_exhausted,
    is_gpu_lost,
    is_host_exhausted,
)
from worker.engine.events import (
    Ended,
    EpochDone,
    Event,
    PhaseChanged,
    Prepared,
    Resumed,
    Tick,
    Warned,
    encode,
)
from worker.engine.loop import fit
from worker.engine.resolve import Resolved, resolve, resolve_class_weights, resolve_device, settled
from worker.engine.resume import restore
from worker.engine.run import Memory, Run, build_run
from worker.engine.samples import Splits
from worker.entry import Orders
from worker.models.base import batch_layers, num_parameters
from worker.models.build import flops_per_sample
from worker.models.normalizer import Normalized, Scaling, without_normalizer
from worker.publish import write_sidecar
from worker.report.log import Heading, Log
from worker.report.model_card import ModelCard
from worker.report.plot import Plot, title_of
from worker.stream.prepare import Surveyed, survey
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream
from worker.telemetry import Gpu, ram, torch_peak

Send = Callable[[bytes], None]
# The reason code of a run that stopped for an order.
OBEYED: dict[Order, str] = {
    "cancel": "user",
    "expire": "max_runtime",
    "pause": "user",
    "preempt": "preempted",
}
DISK_MARGIN = 32 * 2**20
TICK_EVERY_S = 0.2
MEMORY_EVERY_S = 0.1


class Outbox:
    """Events on their way to the supervisor: every one, but for ticks, which all say the same.

    A few a second tell that training gets on; one after every micro-batch would slow small models down.
    """

    def __init__(self, send: Send, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._next_tick_at = -math.inf

    def put(self, event: Event) -> None:
        """Send an event, or let a tick pass that follows too soon."""
        if isinstance(event, Tick):
            now = self._clock()
            if now < self._next_tick_at:
                return
            self._next_tick_at = now + TICK_EVERY_S
        self._send(encode(event))


def run(assignment: Assignment, send: Send, orders: Orders) -> None:
    """Run one attempt to its end: its events to the supervisor, then to the run's own files."""
    attempt = _Attempt(assignment)
    outbox = Outbox(send)
    sinks = _Sinks(assignment)
    ended = Ended("internal", "The attempt ended without a verdict.")
    try:
        failpoint("runner.begin")
        sinks.begin()
        for event in attempt.events():
            if isinstance(event, Ended):
                ended = event
                break
            if isinstance(event, EpochDone | Resumed) and event.best is not None:
                write_sidecar(assignment.directory, event.best)
            outbox.put(event)
            for warning in sinks.write(event):
                outbox.put(warning)
            if orders.stop is not None and attempt.may_stop(orders.stop):
                ended = Ended(OBEYED[orders.stop], "Stopped as ordered.", stopped=orders.stop)
                break
    except Exception as error:  # the process boundary: whatever it is becomes a recorded ending
        ended = attempt.verdict(error)
        sinks.fail(ended)
    outbox.put(ended)
    if ended.stopped != "crash":  # what becomes of the job then is not for the runner to say
        sinks.end(_status(ended), ended)


class _Sinks:
    """The run's own files. None of them is worth a training: what fails them is a warning, once."""

    def __init__(self, assignment: Assignment) -> None:
        self._log = Log(sys.stdout, _heading(assignment))
        config = assignment.config
        title = title_of(config["name"], assignment.job_id)
        self._plot = Plot(assignment.plot, title, assignment.curve, dataset=config["data"]["path"])
        self._card = ModelCard(
            assignment.directory,
            job_id=assignment.job_id,
            attempt=assignment.attempt,
            config=config,
        )
        self._has_warned = False

    def begin(self) -> None:
        """Write what can be said at once."""
        with suppress(OSError):
            self._log.begin()

    def write(self, event: Event) -> Iterator[Warned]:
        """Hand an event to every sink."""
        for sink in (self._log, self._plot, self._card):
            try:
                sink.write(event)
            except Exception as error:  # a fault of ours included
                if not self._has_warned:
                    self._has_warned = True
                    name = type(sink).__name__.lower()
                    if not isinstance(error, OSError):
                        traceback.print_exc()
                    why = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
                    code = "storage_error" if isinstance(error, OSError) else "internal"
                    yield Warned(code, f"The {name} of the run cannot be written: {why}.")

    def fail(self, ended: Ended) -> None:
        """Say in the log why the attempt ends; called where the exception is handled."""
        with suppress(OSError):
            if ended.reason == "internal" or ended.stopped == "crash":
                self._log.end()
                traceback.print_exc()
            else:
                self._log.error(ended.message + (f" {ended.hint}" if ended.hint else ""))

    def end(self, status: str, ended: Ended) -> None:
        """Write what is left to write."""
        with suppress(OSError):
            self._log.end()
        with suppress(OSError):
            self._plot.end()
        with suppress(OSError):
            self._card.end(status, ended)


def _status(ended: Ended) -> str:
    match ended.stopped:
        case "pause":
            return Status.PAUSED
        case "preempt":
            return Status.QUEUED
        case _:
            return ENDINGS[ended.reason]


class _Attempt:
    """What an attempt does, and when it may be left."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._run: Run | None = None  # once it trains
        self._is_asked = False

    def may_stop(self, order: Order) -> bool:
        """Tell whether to leave now: to pause, a resume checkpoint is made first, at the next boundary."""
        if order in ("cancel", "expire") or self._run is None:
            return True
        if not self._is_asked:
            self._is_asked = True
            self._run.request_checkpoint()
        return not self._run.is_checkpoint_requested

    def events(self) -> Generator[Event, None, None]:
        """Prepare and train."""
        request = stored(self._assignment.config)
        yield PhaseChanged("preparing")
        dataset = open_dataset(
            self._assignment.sources,
            _as_settled(request.data, self._assignment.resolved),
            budget_bytes=self._assignment.stream_budget,
        )
        if self._assignment.data_fingerprint not in (None, dataset.fingerprint):
            raise DataChanged(
                f"The files of {request.data.path!r} are not those the job was submitted with.",
                "Submit the job again to train on the data as they are now.",
            )
        weights = request.loss.class_weights
        plan = planned(
            dataset,
            request.data,
            self._assignment.plans,
            class_weights=weights if isinstance(weights, list) else None,
        )
        for code, message in (*dataset.warnings, *plan.warnings):
            yield Warned(code, message)
        found = survey(dataset, plan, request.data.normalize, request.data.non_finite)
        plan = found.plan
        if found.num_bad_rows:
            yield Warned("non_finite", f"{found.num_bad_rows} rows hold features that are not finite.")
        resolved = _resolved(self._assignment, request, plan)
        run = _build(self._assignment, request, dataset, found, resolved)
        if (warning := batch_statistics(batch_layers(run.model))) is not None:
            yield Warned(*warning)
        yield Prepared(
            {**asdict(resolved), **_resolved_besides(resolved, dataset, plan)},
            plan_document(request, plan, _model_size(self._assignment, request, dataset, plan, run)),
            _key(request, dataset, plan),
        )
        if self._assignment.resume is not None:
            resume = self._assignment.resume
            yield restore(run, resume.path, sha256=resume.sha256)
        elif self._assignment.init_from is not None:
            start_from(run, self._assignment.init_from)
        if self._assignment.rung is not None:
            stood = run.rung
            run.descend(self._assignment.rung)
            if self._assignment.resolved is None or run.rung != stood:
                yield Warned("smaller_batch", _descended(run))
        self._run = run
        yield from fit(run)

    def verdict(self, error: Exception) -> Ended:
        """Give every exception its reason code."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._disk_full()
        return _verdict(error)

    def _disk_full(self) -> Ended:
        # A resume checkpoint holds the weights, two moments and change; the best and the log need room too.
        tensors = self._run.model.state_dict().values() if self._run else ()
        needed = 5 * sum(tensor.nbytes for tensor in tensors) + DISK_MARGIN
        free = shutil.disk_usage(self._assignment.directory).free
        return Ended(
            "disk_full",
            f"The disk is full: {needed / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB are free.",
            "Free space on the disk of the data and logs folders; the job goes on by itself.",
            stopped="pause",
            evidence={"needed_bytes": needed, "free_bytes": free},
        )


def _descended(run: Run) -> str:
    nominal = run.request.training.nominal_batch
    steps = (
        f"micro-batches of {run.micro_batch}, not {nominal}" if run.micro_batch < nominal else "less at once"
    )
    return f"The GPU ran out of memory before with this config: this attempt begins with {steps}."


def start_from(run: Run, best: Weights) -> None:
    """Start with the best weights of another job; how rows are normalised stays this job's own.

    Raises ConfigInvalid when the weights are not of this shape.
    """
    content = best.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != best.sha256:
        raise CorruptCheckpoint(
            f"The best checkpoint of init_from, {best.path.name}, is not what was written.",
            "Retry the job it is of, or leave init_from out.",
        )
    weights = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    model = run.model.model if isinstance(run.model, Normalized) else run.model
    try:
        model.load_state_dict(without_normalizer(weights) if best.is_normalized else weights)
    except RuntimeError as error:
        differences = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ConfigInvalid(
            f"The weights of init_from do not fit this model: {differences}",
            "Give both jobs the same model, data.window, features and classes.",
        ) from error
    if run.average is not None:
        run.average.restart()


def _resolved(assignment: Assignment, request: JobRequest, plan: SplitPlan) -> Resolved:
    if assignment.resolved is not None:
        return settled(assignment.resolved, request)
    return resolve(request, num_classes=plan.num_classes, rung=assignment.rung, own=assignment.device)


def _as_settled(data: DataConfig, resolved: Mapping[str, Any] | None) -> DataConfig:
    """Take the features of a first attempt, whatever is chosen of a dataset by now when none are named."""
    if resolved is None or data.features is not None:
        return data
    columns = list(resolved["features"])
    return data.model_copy(update={"features": columns[0] if len(columns) == 1 else columns})


def _resolved_besides(resolved: Resolved, dataset: Dataset, plan: SplitPlan) -> dict[str, Any]:
    """Say what was settled of data and machine: what the engine is not told."""
    is_cuda = resolved.device.startswith("cuda")
    return {
        "gpu": torch.cuda.get_device_name(resolved.device) if is_cuda else None,
        "fingerprint": dataset.fingerprint,
        "features": list(dataset.features.columns),
        "shape": list(dataset.features.shape),
        "label_end": dataset.label_end,
        "horizon_s": dataset.horizon_s,
        "classes": list(plan.classes),
        "cuts_ns": list(plan.cuts_ns),
    }


def _build(
    assignment: Assignment, request: JobRequest, dataset: Dataset, found: Surveyed, resolved: Resolved
) -> Run:
    data, plan = request.data, found.plan
    shuffle = None
    if data.shuffle == "block":
        shuffle = Shuffle(data.shuffle_buffer, data.shuffle_run, request.training.seed)
    streams = {
        part: Stream(
            dataset,
            plan,
            part,
            budget_bytes=assignment.stream_budget,
            verify_checksums=True,
            shuffle=shuffle if part == "train" else None,
            zero_non_finite=data.non_finite == "zero",
        )
        for part in plan.parts
    }
    scaling = None
    if found.center_F is not None and found.scale_F is not None:
        scaling = Scaling(found.center_F, found.scale_F)
    return build_run(
        request,
        resolved,
        shape=dataset.features.shape,
        num_classes=plan.num_classes,
        splits=Splits(streams["train"], streams["val"], streams.get("test")),
        directory=assignment.directory,
        memory=_Memory(assignment.device),
        sidecar=_sidecar(assignment, request, dataset, plan, resolved),
        vram_fraction=assignment.vram_fraction,
        custom_prefixes=assignment.custom_prefixes,
        scaling=scaling,
    )


def _model_size(
    assignment: Assignment, request: JobRequest, dataset: Dataset, plan: SplitPlan, run: Run
) -> dict[str, int | None]:
    return {
        "parameters": num_parameters(run.model),
        "flops_per_sample": flops_per_sample(
            request.model,
            window=plan.window,
            shape=dataset.features.shape,
            num_classes=plan.num_classes,
            allowed_prefixes=assignment.custom_prefixes,
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
        "resolved": {**asdict(resolved), **_resolved_besides(resolved, dataset, plan)},
        "classes": list(plan.classes),
        "data_fingerprint": dataset.fingerprint,
        "comparison_key": _key(request, dataset, plan),
        "versions": {
            "saimp": version_text(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _key(request: JobRequest, dataset: Dataset, plan: SplitPlan) -> str:
    return comparison_key(
        request,
        fingerprint=dataset.fingerprint,
        cuts_ns=plan.cuts_ns,
        horizon_s=dataset.horizon_s,
        label_end=dataset.label_end,
        class_weights=resolve_class_weights(request.loss.class_weights, plan.num_classes),
    )


class _Memory:
    """What a metric row says of memory, on this machine. Rows of the same moment say the same."""

    def __init__(self, device: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gpu = Gpu.of(device)
        self._clock = clock
        self._due_at = -math.inf
        self._read: Memory = {}

    def __call__(self) -> Memory:
        if (now := self._clock()) >= self._due_at:
            self._due_at = now + MEMORY_EVERY_S
            self._read = self._measure()
        return self._read

    def _measure(self) -> Memory:
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
        case DataChanged():
            return Ended("data_changed", error.message, error.hint)
        case SourceUnavailable():
            # A store may be back in a minute, and must not be asked for ever.
            return Ended("storage_error", error.message, error.hint, stopped="crash")
        case InvalidData():
            return Ended("data_invalid", error.message, error.hint)
        case ConfigInvalid():
            return Ended("config_invalid", error.message, error.hint)
        case CorruptCheckpoint():
            return Ended("storage_error", error.message, error.hint)
        case GpuOutOfMemory():
            return Ended("gpu_out_of_memory", error.message, error.hint, evidence=error.evidence)
        case RestartSmaller():
            return Ended(
                "backoff",
                "The GPU ran out of memory in an optimizer step; the job goes on with smaller micro-batches.",
                stopped="preempt",
            )
        case _ if is_gpu_exhausted(error):
            message = first_line(error)
            return Ended(
                "gpu_out_of_memory",
                f"The GPU ran out of memory: {message}",
                "Lower the model's size or data.window, or close what else uses the GPU.",
                evidence={"vram_torch_peak": torch_peak(), "device_message": message},
            )
        case _ if is_gpu_lost(error):
            return Ended(
                "native_crash",
                f"The GPU failed: {first_line(error)}",
                "The traceback is in the job's log; the kernel's log may name the cause (Xid).",
                stopped="crash",
            )
        case _ if is_host_exhausted(error):
            return Ended(
                "host_out_of_memory",
                "The machine ran out of memory.",
                "Lower SAIMP_STREAM_BUDGET or training.batch_size, or close other programs.",
            )
        case OSError() if error.errno in (errno.EIO, errno.EROFS):
            return Ended(
                "storage_error",
                f"A file could not be written: {error.strerror}.",
                "Check the disk of the data and logs folders, then retry the job.",
            )
        case _:
            return Ended(
                "internal",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                "The traceback is at the end of the job's log.",
            )


def _heading(assignment: Assignment) -> Heading:
    return Heading(
        assignment.job_id,
        assignment.attempt,
        assignment.config,
        versions=f"saimp {version_text()}, torch {torch.__version__}",
        device=_device(assignment),
    )


def _device(assignment: Assignment) -> str:
    """Name the device of an attempt, as it was asked for where it is not there. Touches no CUDA."""
    name = str(assignment.config["device"])
    with suppress(ConfigInvalid, RuntimeError):  # a driver that fails: the attempt finds out itself
        settled = assignment.resolved
        name = settled["device"] if settled else str(resolve_device(name, assignment.device))
    product = Gpu.of(name).name if name.startswith("cuda") else None
    return f"{name} {product}" if product else name
