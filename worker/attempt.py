"""One attempt in the supervisor's hands: it relays orders, writes what the runner reports, judges its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from app.errors import StorageUnavailable
from app.failpoints import failpoint
from app.jobs.files import BEST_NAME, Paths, sidecar
from app.jobs.queue import CANCELLED, PAUSED, Claim, Facts, LostJob, Queue, Reason
from app.jobs.states import ENDINGS, Status
from worker.assignment import Order
from worker.death import cause_of_death, oom_kills
from worker.engine.events import BatchDone, Ended, Event
from worker.pending import Pending
from worker.publish import publish_best, publish_reports
from worker.report.log import LastWords
from worker.spawn import Runner
from worker.telemetry import Sampler
from worker.watchdog import Watchdog

FLUSH_S = 0.25
SAMPLE_S = 1.0
# What a runner may take to obey before it is killed: an end has nothing to save, a stop may.
PATIENCE_S: dict[Order, float] = {"cancel": 1.5, "expire": 1.5, "pause": 30.0, "preempt": 30.0}
ENDS: tuple[Order, ...] = ("cancel", "expire")
# And to leave, once it has said its last word.
LEAVE_S = 10.0
PREEMPTED = Reason("preempted", "The worker stopped; the job goes on after it.")


class Attempt:
    """Supervise one runner, one `turn` at a time."""

    def __init__(
        self,
        claim: Claim,
        runner: Runner,
        sampler: Sampler,
        queue: Queue,
        paths: Paths,
        log: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.claim = claim
        self.runner = runner
        self._sampler = sampler
        self._queue = queue
        self._paths = paths
        self._log = log
        self._last_words = LastWords(log)
        self._clock = clock
        self._started = self._flushed = self._sampled = clock()
        self._watchdog = Watchdog(clock)
        self._oom_kills = oom_kills()
        self._pending = self._new_pending()
        self._sent: Pending | None = None  # and not known to be committed
        self._flushes = 0  # known to be committed
        self._is_concluding = False
        self._ended: Ended | None = None
        self._ended_at = 0.0
        self._order: Order | None = None
        self._ordered = 0.0
        self._overruled: Reason | None = None  # the supervisor's verdict, stronger than the runner's
        self._stalled: Reason | None = None  # why the watchdog killed it
        self._torch_peak: int | None = None
        self._committed_files: set[str] = set()  # below the job's folder, of this attempt
        self._superseded: set[str] = set()

    @property
    def log_name(self) -> str:
        return self._log.stem

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
        """Ask the runner to stop; one that does not obey in time is killed. What ends the job comes first."""
        if self._ended is not None:
            return  # it leaves by itself
        if self._order is None or (order in ENDS and self._order not in ENDS):
            self._order = order
            self._ordered = self._clock()
            self.runner.order(order)

    def close(self) -> None:
        """Let go of the runner, and of whatever it started."""
        self.runner.kill()
        self.runner.close()

    # ---- what is due ----

    def _collect(self) -> None:
        while not self.runner.inbox.empty():
            self._take(self.runner.inbox.get())

    def _take(self, event: Event) -> None:
        self._watchdog.saw(event)
        if isinstance(event, Ended):
            self._ended, self._ended_at = event, self._clock()
        if isinstance(event, BatchDone):
            self._torch_peak = event.vram_torch_peak
        self._pending.take(event)

    def _sample(self) -> None:
        now = self._clock()
        if now - self._sampled >= SAMPLE_S:
            self._sampled = now
            self._pending.systems.append(
                {**self._sampler.read(), "vram_torch_peak": self._torch_peak, "time": datetime.now(UTC)}
            )

    def _enforce_limits(self) -> None:
        now = self._clock()
        if self._ended is not None:
            if now - self._ended_at > LEAVE_S:
                self.runner.kill()
            return
        if self._order is not None and now - self._ordered > PATIENCE_S[self._order]:
            self.runner.kill()
        if self._stalled is None and (stalled := self._watchdog.verdict()) is not None:
            self._stalled = stalled
            self.runner.dump_stacks()
            self.runner.kill()
        limit_s = self.claim.config["limits"]["max_runtime_s"]
        if self._order not in ENDS and limit_s is not None:
            ran_s = self.claim.runtime_s + now - self._started
            if ran_s > limit_s:
                self._overruled = Reason(
                    "max_runtime",
                    f"The job ran for {ran_s:.0f} s; limits.max_runtime_s is {limit_s:g}.",
                    "Raise limits.max_runtime_s; the best checkpoint so far is kept.",
                )
                self.order("expire")

    def _flush(self) -> None:
        if self._clock() - self._flushed < FLUSH_S:
            return
        asked = self._queue.record(self.claim.job_id, self.claim.attempt, self._facts())
        self._committed()
        if asked is not None:
            self.order(asked)

    def _facts(self) -> Facts:
        """Hand over what is pending. While an answer is missing that is the same again: it counts once."""
        if self._sent is None:
            self._sent, self._pending = self._pending, self._new_pending()
        return self._sent.facts(self._flushes + 1)

    def _committed(self) -> None:
        """Publish what counts now, and let go of the files that no longer do."""
        assert self._sent is not None
        done, self._sent = self._sent, None
        self._flushes += 1
        self._flushed = self._clock()
        try:
            if done.best is not None:
                publish_best(self._paths, self.claim.job_id, f"{done.folder}/{done.best.name}")
        except OSError as error:  # the row names the immutable file, which stays: nothing is lost
            message = f"the best checkpoint could not be published as {BEST_NAME}: {error.strerror}"
            self._pending.note("warning", code="storage_error", message=message)
        if done.best is not None or done.checkpoints:
            self._prune(done)

    def _prune(self, done: Pending) -> None:
        job = self.claim.job_id
        keep_last = self.claim.config["checkpoint"]["keep_last"]
        self._queue.prune_checkpoints(job, self.claim.attempt, keep_last)
        kept = self._queue.kept_files(job)
        self._committed_files |= {row["name"] for row in done.checkpoints}
        self._committed_files |= {row["best_file"] for row in done.epochs if row["best"]}
        # One round later: somebody may be about to open what has just been superseded.
        failpoint("prune.before_unlink")
        for name in self._superseded - kept:
            path = self._paths.job(job) / name
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)
        self._superseded = self._committed_files - kept
        self._committed_files &= kept

    # ---- the end ----

    def _conclude(self) -> None:
        """Record the ending: the supervisor's verdict, else the runner's own, else what killed it."""
        ended, tell = self._ended, self._tell
        job = (self.claim.job_id, self.claim.attempt)
        if not self._is_concluding:
            if self._sent is not None:
                self._queue.record(*job, self._facts())
                self._committed()
            if ended is not None and ended.evidence:
                self._pending.note(ended.reason, **ended.evidence)
            self._is_concluding = True
        facts = self._facts()
        if ended is not None and ended.stopped is None:
            assert ended.reason in ENDINGS, ended
            self._queue.finish(*job, Reason(ended.reason, ended.message, ended.hint), facts, tell)
        elif self._overruled is not None:
            self._queue.finish(*job, self._overruled, facts, partial(tell, error=self._overruled.message))
        elif self._order == "cancel":
            self._queue.finish(*job, CANCELLED, facts, tell)
        elif ended is None or ended.stopped == "crash":
            cause = self._cause_of_death()
            self._queue.crash(*job, cause, facts, partial(tell, error=cause.message))
        elif ended.reason == "disk_full":
            self._queue.suspend(*job, Reason("disk_full", ended.message, ended.hint), facts, tell)
        elif ended.stopped == "pause":
            self._queue.suspend(*job, PAUSED, facts, tell)
        elif ended.reason == "backoff":
            self._queue.release(*job, Reason("backoff", ended.message, ended.hint), facts, tell)
        else:
            self._queue.release(*job, PREEMPTED, facts, tell)
        self._committed()

    def _tell(self, status: Status, code: str, error: str | None = None) -> None:
        """Leave what a user finds beside the row, before the row says that the job has ended."""
        self._last_words.say(status, code, error)
        with suppress(OSError):
            publish_reports(self._paths, self.claim.job_id, self.claim.attempt)

    def _cause_of_death(self) -> Reason:
        if self._ended is not None:
            return Reason(self._ended.reason, self._ended.message, self._ended.hint)
        killed = oom_kills() - self._oom_kills
        return self._stalled or cause_of_death(self.runner.exit_code, oom_kills_seen=killed)

    def _new_pending(self) -> Pending:
        return Pending(f"attempts/{self.claim.attempt}")
