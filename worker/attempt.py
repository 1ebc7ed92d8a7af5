"""One attempt in the supervisor's hands: it relays orders, writes what the runner reports, judges its end."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.errors import StorageUnavailable
from app.jobs.files import BEST_NAME, Paths
from app.jobs.queue import Claim, Facts, LostJob, Queue, Reason
from app.jobs.states import ENDINGS
from worker.assignment import Order
from worker.engine.events import (
    BatchDone,
    BestFile,
    Ended,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    PhaseChanged,
    Prepared,
    Tested,
    Warned,
)
from worker.publish import publish_best
from worker.spawn import Runner
from worker.telemetry import Sampler

FLUSH_S = 0.25
SAMPLE_S = 1.0
# What a runner may take to obey before it is killed: a cancel has nothing to save, a stop may.
PATIENCE_S: dict[Order, float] = {"cancel": 1.5, "pause": 30.0, "preempt": 30.0}


@dataclass
class _Pending:
    """What was reported and not yet committed."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    systems: list[dict[str, Any]] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    best: BestFile | None = None

    def facts(self) -> Facts:
        return Facts(self.events, self.batches, self.epochs, self.systems, self.progress)

    def __bool__(self) -> bool:
        return bool(self.events or self.batches or self.epochs or self.systems or self.progress)


class Attempt:
    """Supervise one runner, one `turn` at a time."""

    def __init__(
        self,
        claim: Claim,
        runner: Runner,
        sampler: Sampler,
        queue: Queue,
        paths: Paths,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.claim = claim
        self.runner = runner
        self._sampler = sampler
        self._queue = queue
        self._paths = paths
        self._clock = clock
        self._started = self._flushed = self._sampled = clock()
        self._pending = _Pending()
        self._ended: Ended | None = None
        self._order: Order | None = None
        self._ordered = 0.0
        self._overruled: Reason | None = None  # the supervisor's verdict, stronger than the runner's
        self._torch_peak: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the runner is gone and all it said is in hand."""
        return not self.runner.is_alive and self.runner.is_drained and self.runner.inbox.empty()

    def turn(self) -> bool:
        """Do what is due; return whether the attempt has ended and its ending is recorded.

        A database that does not answer costs nothing: what is pending waits for the next turn.
        """
        over = self.is_over
        self._collect()
        try:
            if over:
                self._conclude()
                return True
            self._sample()
            self._enforce_limits()
            self._flush()
        except StorageUnavailable:
            return False
        except LostJob:
            self.runner.kill()  # somebody else's now; whatever it still says is not written
            return not self.runner.is_alive
        return False

    def order(self, order: Order) -> None:
        """Ask the runner to stop; a runner that does not obey in time is killed."""
        if self._order is None:
            self._order = order
            self._ordered = self._clock()
            self.runner.order(order)

    def close(self) -> None:
        self.runner.kill()
        self.runner.close()

    # ---- what the runner reports ----

    def _collect(self) -> None:
        while not self.runner.inbox.empty():
            self._take(self.runner.inbox.get())

    def _take(self, event: Event) -> None:
        pending = self._pending
        match event:
            case PhaseChanged():
                pending.progress["phase"] = event.phase
            case Prepared():
                pending.progress |= {"resolved": event.resolved, "plan": event.plan}
                pending.events.append(("prepared", {}))
            case EpochStarted():
                pending.progress |= {
                    "epoch": event.epoch,
                    "epochs": event.epochs,
                    "batch": 0,
                    "batches": event.batches,
                }
            case BatchDone():
                self._torch_peak = event.vram_torch_peak
                pending.batches.append(_batch_row(event))
                pending.progress |= {"batch": event.batch, "samples_per_s": _finite(event.samples_per_s)}
            case EpochDone():
                self._take_epoch(event)
            case OomRecovered():
                pending.events.append(
                    (
                        "oom_recovered",
                        {"step": event.step, "batch_size": event.batch_size, "message": event.message},
                    )
                )
            case Tested():
                pending.progress["test"] = {
                    "loss": _finite(event.loss),
                    "accuracy": event.accuracy,
                    "confusion": event.confusion,
                }
            case Warned():
                pending.events.append(("warning", {"code": event.code, "message": event.message}))
            case Ended():
                self._ended = event
            case _:
                pass

    def _take_epoch(self, event: EpochDone) -> None:
        pending = self._pending
        pending.epochs.append(_epoch_row(event))
        pending.progress["samples_per_s"] = _finite(event.samples_per_s)
        if event.best is None:
            return
        directory = self._paths.attempt(self.claim.job_id, self.claim.attempt)
        pending.best = event.best
        pending.progress |= {
            "best_epoch": event.epoch,
            "best_val_loss": event.val_loss,
            "best_val_accuracy": event.val_accuracy,
            "best_file": str((directory / event.best.name).relative_to(self._paths.job(self.claim.job_id))),
            "best_sha256": event.best.sha256,
            "best_bytes": event.best.size,
        }
        pending.events.append(("best_saved", {"epoch": event.epoch, "val_loss": event.val_loss}))

    # ---- what is due ----

    def _sample(self) -> None:
        now = self._clock()
        if now - self._sampled >= SAMPLE_S:
            self._sampled = now
            self._pending.systems.append(
                {**self._sampler.read(), "vram_torch_peak": self._torch_peak, "time": datetime.now(UTC)}
            )

    def _enforce_limits(self) -> None:
        now = self._clock()
        if self._order is not None and now - self._ordered > PATIENCE_S[self._order]:
            self.runner.kill()
        limit_s = self.claim.config["limits"]["max_runtime_s"]
        if self._overruled is None and limit_s is not None:
            ran_s = self.claim.runtime_s + now - self._started
            if ran_s > limit_s:
                self._overruled = Reason(
                    "max_runtime",
                    f"The job ran for {ran_s:.0f} s; limits.max_runtime_s is {limit_s:g}.",
                    "Raise limits.max_runtime_s; the best checkpoint so far is kept.",
                )
                self.order("cancel")

    def _flush(self) -> None:
        if self._clock() - self._flushed < FLUSH_S:
            return
        cancel_requested = self._queue.record(self.claim.job_id, self.claim.attempt, self._pending.facts())
        self._committed()
        if cancel_requested:
            self.order("cancel")

    def _committed(self) -> None:
        pending, self._pending = self._pending, _Pending()
        self._flushed = self._clock()
        if pending.best is None:
            return
        try:
            publish_best(self._paths, self.claim.job_id, self.claim.attempt, pending.best)
        except OSError as error:  # the row names the immutable file, which stays: nothing is lost
            message = f"the best checkpoint could not be published as {BEST_NAME}: {error.strerror}"
            self._pending.events.append(("warning", {"code": "storage_error", "message": message}))

    # ---- the end ----

    def _conclude(self) -> None:
        """Record the ending: the supervisor's verdict, else the runner's own, else what killed it."""
        facts = self._pending.facts()
        job = (self.claim.job_id, self.claim.attempt)
        if self._overruled is not None:
            self._queue.finish(*job, self._overruled, facts)
        elif self._order == "cancel" or (self._ended is not None and self._ended.stopped == "cancel"):
            self._queue.finish(*job, Reason("user", "Cancelled by the user."), facts)
        elif self._ended is None and self._order is None:
            self._queue.crash(*job, cause_of_death(self.runner.exit_code), facts)
        elif self._ended is None or self._ended.stopped is not None:
            self._queue.release(
                *job, Reason("preempted", "The worker stopped; the job goes on after it."), facts
            )
        else:
            assert self._ended.reason in ENDINGS, self._ended
            verdict = Reason(self._ended.reason, self._ended.message, self._ended.hint)
            self._queue.finish(*job, verdict, facts)
        self._committed()


def cause_of_death(exit_code: int | None) -> Reason:
    """Name what ended a runner that did not end by itself."""
    log = "The end of the job's log says more."
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        if name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"):
            return Reason("native_crash", f"The training process crashed with {name}.", log)
        return Reason("internal", f"The training process was killed by {name}.", log)
    return Reason(
        "internal", f"The training process ended with exit code {exit_code} and without a word.", log
    )


def _batch_row(event: BatchDone) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "batch": event.batch,
        "step": event.step,
        "loss": _finite(event.loss),
        "accuracy": event.accuracy,
        "lr": event.lr,
        "grad_norm": _finite(event.grad_norm),
        "time": datetime.fromtimestamp(event.time, UTC),
    }


def _epoch_row(event: EpochDone) -> dict[str, Any]:
    return {
        "epoch": event.epoch,
        "time": datetime.now(UTC),
        "train_loss": _finite(event.train_loss),
        "train_accuracy": event.train_accuracy,
        "val_loss": _finite(event.val_loss),
        "val_accuracy": event.val_accuracy,
        "best": event.best is not None,
        "lr": event.lr,
        "duration_s": event.duration_s,
        "samples_per_s": _finite(event.samples_per_s),
        "ece": event.ece,
        "confusion": event.confusion,
        "ram_peak": event.ram_peak,
        "vram_peak": event.vram_peak,
        "skipped_steps": event.skipped_steps,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
