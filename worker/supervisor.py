"""The supervisor: claims jobs, spawns one runner at a time, and never loads torch itself.

A loop of `turn`s; signal handlers only set flags.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from app.db import connect
from app.errors import ServiceError, StorageUnavailable
from app.jobs.files import Paths
from app.jobs.queue import Claim, LostJob, Owner, Queue, Reason
from app.migrate import WrongSchema, wait_for_head
from app.settings import Settings, SettingsError, load
from worker.assignment import Assignment
from worker.attempt import Attempt
from worker.publish import crown
from worker.spawn import Spawner
from worker.telemetry import Gpu, Sampler, machine

IDLE_WAIT_S = 0.2
BUSY_WAIT_S = 0.05
BEAT_S = 5.0
DATABASE_BUSY_S = 30.0


class Supervisor:
    """One slot: at most one running job."""

    def __init__(
        self, settings: Settings, queue: Queue, spawner: Spawner, say: Callable[[str], None] = print
    ) -> None:
        self.stopping = False
        self.attempt: Attempt | None = None
        self._settings = settings
        self._queue = queue
        self._spawner = spawner
        self._say = say
        self._paths = Paths(settings.data_root.absolute(), settings.logs_root.absolute())
        self._gpu = Gpu()
        self._owner = whoami()
        self._slot = f"{self._owner.host}/0"
        self._beaten = -BEAT_S
        self._claim: Claim | None = None  # held, its runner not yet started

    @property
    def is_idle(self) -> bool:
        return self.attempt is None and self._claim is None

    def arrive(self) -> None:
        """Take the slot: say who serves it, and put back what its last holder left running."""
        self._queue.greet(self._owner, self._slot, machine(self._gpu))
        for row in self._queue.orphans(self._slot):
            with suppress(LostJob):
                cause = Reason("internal", "The worker died while it ran the job.", None)
                status = self._queue.crash(row.id, row.attempt, cause)
                self._say(f"found {row.id} left running by a worker that is gone: {status}")

    def leave(self) -> None:
        """Give the slot up."""
        with suppress(StorageUnavailable):
            self._queue.leave(self._slot)

    def turn(self) -> float:
        """Do what is due now and return how long to wait, in seconds."""
        if self.attempt is None:
            return self._idle_turn()
        if self.stopping:
            self.attempt.order("preempt")
        self._beat()
        if not self.attempt.turn():
            return BUSY_WAIT_S
        self._end_attempt(self.attempt)
        return 0.0

    def wait(self, seconds: float) -> None:
        """Sleep, but not through the end of the runner."""
        if self.attempt is not None and self.attempt.runner.is_alive:
            wait([self.attempt.runner.process.sentinel], seconds)
        else:
            time.sleep(seconds)

    def _idle_turn(self) -> float:
        try:
            if self._claim is None:
                if self.stopping:
                    return 0.0
                self._beat()
                self._claim = self._queue.claim(self._owner, self._slot)
            if self._claim is None:
                return IDLE_WAIT_S
            self.attempt = self._begin(self._claim)
        except StorageUnavailable as error:
            self._say(f"database: {error.message}")
            return 1.0
        except LostJob:
            pass
        self._claim = None
        return 0.0

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > BEAT_S:
            self._queue.beat(self._slot)
            self._beaten = time.monotonic()

    def _begin(self, claim: Claim) -> Attempt:
        log_name = claim.log_name
        if log_name is None:
            log_name = self._paths.create_log(claim.claimed_at)
            self._queue.name_log(claim.job_id, claim.attempt, log_name)
        if claim.attempt > 1:
            self._queue.restart(claim.job_id, claim.attempt)
        directory = self._paths.attempt(claim.job_id, claim.attempt)
        directory.mkdir(parents=True, exist_ok=True)
        runner = self._spawner.start(
            Assignment(
                job_id=claim.job_id,
                attempt=claim.attempt,
                config=claim.config,
                resolved=claim.resolved,
                data_fingerprint=claim.data_fingerprint,
                data_root=self._paths.data_root,
                directory=directory,
                log=self._paths.log(log_name),
                plot=self._paths.plot(log_name),
                stream_budget=self._settings.stream_budget,
                vram_fraction=self._settings.vram_fraction,
            )
        )
        self._say(f"{claim.job_id} attempt {claim.attempt} runs as process {runner.pid}, log {log_name}.txt")
        return Attempt(claim, runner, Sampler(runner.pid, self._gpu), self._queue, self._paths)

    def _end_attempt(self, attempt: Attempt) -> None:
        attempt.close()
        self.attempt = None
        job_id = attempt.claim.job_id
        try:
            row = self._queue.get(job_id)
            self._say(f"{job_id} {row.status}" + (f" ({row.reason_code})" if row.reason_code else ""))
            if row.finished_at is not None and crown(self._paths, job_id):
                self._say(f"{job_id} is the champion")
        except (ServiceError, OSError) as error:
            self._say(f"{job_id} has ended, but: {error}")


def whoami() -> Owner:
    """Describe this process so that it can be told from a later one with the same pid."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return Owner(
        host=socket.gethostname(),
        boot_id=boot_id.read_text().strip() if boot_id.exists() else str(psutil.boot_time()),
        pid=os.getpid(),
        pid_start=psutil.Process().create_time(),
    )


def hold_slot(path: Path) -> IO[str] | None:
    """Lock the slot for the life of this process; null, the holder left in the file, if it is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    json.dump({"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}, file)
    file.flush()
    return file


def main() -> int:
    """Run the supervisor until SIGINT or SIGTERM; exit code 0 after a graceful stop."""
    try:
        settings = load()
    except SettingsError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    lock_path = Paths(settings.data_root, settings.logs_root).worker_lock()
    lock = hold_slot(lock_path)
    if lock is None:
        holder: dict[str, Any] = json.loads(lock_path.read_text() or "{}")
        say(f"another worker serves this data root: process {holder.get('pid')}, since {holder.get('since')}")
        return 0
    with lock:
        return _serve(settings)


def _serve(settings: Settings) -> int:
    spawner = Spawner()
    spawner.warm_up()
    database = connect(settings.database, busy_timeout_s=DATABASE_BUSY_S)
    supervisor = Supervisor(settings, Queue(database), spawner, say)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        supervisor.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        wait_for_head(database, timeout_s=10.0)
        supervisor.arrive()
    except (WrongSchema, StorageUnavailable) as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    gpu = machine(Gpu())
    device = f"{gpu['gpu']}, {gpu['vram_total'] / 2**30:.1f} GB" if gpu["gpu"] else "cpu"
    say(f"worker ready on {device}; waiting for jobs")
    while not (supervisor.stopping and supervisor.is_idle):
        supervisor.wait(supervisor.turn())
    supervisor.leave()
    database.dispose()
    say("worker stopped")
    return 0


def say(line: str) -> None:
    """Print a line for the operator, at once."""
    print(line, flush=True)
