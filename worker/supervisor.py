"""The supervisor: claims jobs, spawns one runner at a time, and never loads torch itself.

A loop of `turn`s; signal handlers only set flags.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil
from pydantic import ValidationError

from app.database_file import back_up, network_file_system, refuse_damaged
from app.db import Damaged, connect
from app.errors import StorageDamaged, StorageUnavailable
from app.failpoints import failpoint
from app.jobs import queue
from app.jobs.config import JobRequest
from app.jobs.files import Paths
from app.jobs.metrics import Scope, since
from app.jobs.queue import LEASE_S, Checkpoint, Claim, LostJob, Owner, Queue, Reason, Row, Tell
from app.jobs.states import FINAL, Status
from app.migrate import WrongSchema, wait_for_head
from app.settings import Settings, SettingsError, load
from worker.assignment import Assignment, Point, Resume, Weights
from worker.attempt import Attempt
from worker.engine.events import Rung
from worker.publish import is_published, is_tidy, publish_best, sweep, unreadable
from worker.report.log import LastWords
from worker.spawn import Spawner
from worker.telemetry import Gpu, Sampler, machine

IDLE_WAIT_S = 0.2
BUSY_WAIT_S = 0.05
BEAT_S = 5.0
BACKUP_LOOK_S = 600.0
GPU_WAIT_S = 10.0
GIVE_UP_S = 45.0
LAST_JOBS = 50
EPOCHS: tuple[Scope, ...] = ("epoch",)
DATABASE_BUSY_S = 30.0
UNBEGUN = Reason(
    "preempted", "The database went away in the middle of a claim or an ending; the job goes on."
)


class Supervisor:
    """One slot: at most one running job."""

    def __init__(
        self,
        settings: Settings,
        jobs: Queue,
        spawner: Spawner,
        say: Callable[[str], None] = print,
        *,
        device: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """device: the slot's own, one of the settings' devices; null = the machine's one slot."""
        self.stopping = False
        self.attempt: Attempt | None = None
        self._settings = settings
        self._queue = jobs
        self._spawner = spawner
        self._say = say
        self._clock = clock
        self._paths = Paths(settings.data_root.absolute(), settings.logs_root.absolute())
        self._gpu = Gpu.of(device)
        self._device = device
        self._not_on = others(settings.slots, device)
        self._owner = whoami()
        self._slot = slot_of(self._paths.worker_slot(device))
        self._beaten = -BEAT_S
        self._away = clock()  # when the database was last away, for all we know
        self._backup_looked = float("-inf")
        self._claim: Claim | None = None  # held, its runner not yet started
        self._log_name: str | None = None  # made for it, and not yet committed
        self._stopping_since: float | None = None
        self._is_unsure = False  # whether a job may be running here by the database alone

    @property
    def is_idle(self) -> bool:
        return self.attempt is None and self._claim is None

    @property
    def is_stuck(self) -> bool:
        """Whether it has been stopping for too long: all that is left is a database that does not answer."""
        if not self.stopping:
            return False
        self._stopping_since = self._stopping_since or self._clock()
        return self._clock() - self._stopping_since > GIVE_UP_S

    def close(self) -> None:
        """End a runner that is still there. The next supervisor puts its job back."""
        if self.attempt is not None:
            self.attempt.close()
            self.attempt = None

    def arrive(self) -> None:
        """Take the slot: say who serves it, and see to what its last holder left undone."""
        told = {**machine(self._gpu), "device": self._device}
        self._queue.greet(self._owner, self._slot, told)
        self._put_back_orphans(self._slot)
        self._put_back_abandoned()
        self._queue.cancel_dependents()
        rows = self._queue.page(statuses=sorted(FINAL), limit=LAST_JOBS)[0]
        checkpoints = self._queue.checkpoint_files([row.id for row in rows])
        for row in rows:
            with self._alone(row.id, "could not be tidied up"):
                is_whole = row.best_file is None or is_published(self._paths, row.id, row.best_sha256)
                if is_whole and is_tidy(self._paths, row.id, checkpoints):
                    continue
                if not is_whole:
                    publish_best(self._paths, row.id, row.best_file)
                self._settle(row)
        self._queue.follow_champion()

    def _put_back_abandoned(self) -> None:
        """Do the same for slots that the settings no longer name, as far as nobody holds them."""
        named = {self._paths.worker_slot(device) for device in self._settings.slots}
        for path in set(self._paths.data_root.glob(".worker*.slot")) - named:
            if (lock := hold_slot(path.with_suffix(".lock"))) is not None:
                with lock:
                    slot = slot_of(path)
                    self._put_back_orphans(slot)
                    self._queue.leave(slot)

    def _put_back_orphans(self, slot: str) -> None:
        """Put back what a slot is said to run: nothing runs in it now."""
        for row in self._queue.orphans(slot):
            cause = Reason("internal", "The worker died while it ran the job.", None)
            with self._alone(
                row.id, "was left running by a worker that is gone, and its files are as they are"
            ):
                self._crash(row.id, row.attempt, cause, row.log_name)
                now = self._queue.get(row.id)
                self._say(f"found {row.id} left running by a worker that is gone: {now.status}")
                self._settle(now)

    @contextmanager
    def _alone(self, job_id: str, what: str) -> Iterator[None]:
        """Say in a line what is wrong with one job, and leave it: it shall not keep the others waiting."""
        try:
            yield
        except StorageUnavailable:
            raise
        except LostJob:
            pass
        except Exception as error:
            self._say(f"{job_id} {what}: {_named(error)}")

    def _crash(self, job_id: str, attempt: int, cause: Reason, log_name: str | None = None) -> None:
        """Record that an attempt has died; where even that fails, end its job by the row alone.

        Raises LostJob, StorageUnavailable.
        """
        try:
            self._queue.crash(job_id, attempt, cause, tell=self._teller(log_name, cause))
        except (LostJob, StorageUnavailable):
            raise
        except Exception as error:
            self._say(f"{job_id} is set aside: its end could not be recorded: {_named(error)}")
            message = f"{cause.message} What follows an end failed, too: {_named(error)}."
            self._queue.set_aside(job_id, attempt, Reason("internal", message, cause.hint))

    def _put_back_unbegun(self) -> None:
        """Put back what this supervisor runs by the database alone: nobody's crash."""
        self._is_unsure = False
        for row in self._queue.orphans(self._slot):
            with self._alone(row.id, "runs here by the database, and could not be put back"):
                self._queue.release(row.id, row.attempt, UNBEGUN)
                self._say(f"put {row.id} back: the database says that it runs here, and it does not")

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
        try:
            if not self.attempt.turn():
                return BUSY_WAIT_S
        except Exception as error:  # of one attempt, and the end of no other
            traceback.print_exc()
            self._give_up(self.attempt, error)
            return 0.0
        self._end_attempt(self.attempt)
        return 0.0

    def _give_up(self, attempt: Attempt, error: Exception) -> None:
        """End an attempt that the supervisor itself cannot go on with: a crash, with its cause."""
        attempt.close()
        self.attempt = None
        self._is_unsure = True  # should the database be away just now
        claim = attempt.claim
        self._say(f"{claim.job_id} was given up: {_named(error)}")
        cause = Reason("internal", f"The worker could not go on with the attempt: {_named(error)}.")
        with suppress(LostJob, StorageUnavailable):
            self._crash(claim.job_id, claim.attempt, cause, attempt.log_name)

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
                if self._is_unsure:
                    self._put_back_unbegun()
                self._claim = self._queue.claim(self._owner, self._slot, not_on=self._not_on)
            if self._claim is None:
                self._back_up()
                return IDLE_WAIT_S
            self.attempt = self._begin(self._claim)
        except StorageUnavailable as error:
            self._say(f"database: {error.message}")
            self._is_unsure = self._claim is None  # a claim may have gone through, its answer lost
            return 1.0
        except LostJob:
            self._is_unsure = True
        except Exception as error:
            if not isinstance(error, OSError | EOFError):
                traceback.print_exc()
            if self._claim is None:
                self._say(f"no job could be claimed: {_named(error)}")
                self._is_unsure = True
                return 1.0
            self._could_not_begin(self._claim, error)
        self._claim = self._log_name = None
        return 0.0

    def _could_not_begin(self, claim: Claim, error: Exception) -> None:
        """Record an attempt that came to nothing before there was a runner."""
        self._say(f"{claim.job_id} could not be started: {error}")
        if isinstance(error, OSError | EOFError):
            message = f"The attempt could not be started: {error}."
            reason = Reason("storage_error", message, "Check the data and logs folders and their disks.")
        else:
            reason = Reason("internal", f"The attempt could not be started: {_named(error)}.")
        with suppress(LostJob):
            self._crash(claim.job_id, claim.attempt, reason, claim.log_name or self._log_name)

    def _teller(self, log_name: str | None, cause: Reason) -> Tell:
        """End the log of an attempt that nobody else can end."""
        if log_name is None:
            return lambda _status, _code: None
        return partial(LastWords(self._paths.log(log_name)).say, error=cause.message)

    def _beat(self) -> None:
        """Every few seconds: say we live, and see to what nobody else sees to."""
        if self._clock() - self._beaten <= BEAT_S:
            return
        self._beaten = self._clock()
        try:
            self._queue.beat(self._slot)
            # After an outage all leases are over: their holders come first.
            if self._beaten - self._away > LEASE_S:
                for job_id, status in self._queue.rescue(self._owner.host):
                    self._say(f"took {job_id} from a host that fell silent: {status}")
            self._queue.cancel_dependents()
            self._resume_where_there_is_room()
            self._queue.follow_champion()
        except StorageUnavailable as error:
            self._away = self._beaten
            self._say(f"database: {error.message}")

    def _back_up(self) -> None:
        """Copy the database once a day, while there is nothing else to do."""
        file = self._queue.database.file
        if file is None or self._clock() - self._backup_looked <= BACKUP_LOOK_S:
            return
        self._backup_looked = self._clock()
        try:
            back_up(file, self._paths.database_backup())
        except StorageDamaged as error:
            self._say(f"database: {error.message} {error.hint}")
        except (OSError, sqlite3.Error) as error:
            self._say(f"database: it could not be backed up: {error}")

    def _resume_where_there_is_room(self) -> None:
        """Let jobs that paused for a full disk go on once what they need is free."""
        for row in self._queue.page(statuses=[Status.PAUSED], limit=1000)[0]:
            if row.reason_code != "disk_full":
                continue
            with self._alone(row.id, "could not go on, though there may be room"):
                told = [event.data for event in self._queue.events(row.id) if event.kind == "disk_full"]
                needed = told[-1].get("needed_bytes", 0) if told else 0
                if free_bytes(self._paths.data_root) > needed:
                    self._queue.resume(row.id)
                    self._say(f"{row.id} goes on: there is room on the disk again")

    def _begin(self, claim: Claim) -> Attempt | None:
        config = usable(claim.config)
        if isinstance(config, Reason):
            self._say(f"{claim.job_id} cannot be started: {config.message}")
            tell = self._teller(claim.log_name, config)
            self._queue.finish(claim.job_id, claim.attempt, config, tell=tell)
            return None
        claim = replace(claim, config=config)
        if (busy := self._gpu_is_busy(claim)) is not None:
            self._queue.release(claim.job_id, claim.attempt, busy, again_in_s=GPU_WAIT_S)
            return None
        log_name = claim.log_name or self._log_name
        if log_name is None:
            log_name = self._log_name = self._paths.create_log(claim.claimed_at)
        self._queue.name_log(claim.job_id, claim.attempt, log_name)
        directory = self._paths.attempt(claim.job_id, claim.attempt)
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint = self._go_on_from(claim)
        failpoint("start.before_fork")
        runner = self._spawner.start(
            Assignment(
                job_id=claim.job_id,
                attempt=claim.attempt,
                config=claim.config,
                resolved=claim.resolved,
                data_fingerprint=claim.data_fingerprint,
                sources=replace(self._settings.sources, folder=self._paths.data_root),
                plans=self._paths.plans(),
                directory=directory,
                log=self._paths.log(log_name),
                plot=self._paths.plot(log_name),
                stream_budget=self._settings.stream_budget,
                vram_fraction=self._settings.vram_fraction,
                resume=self._resume(checkpoint) if checkpoint else None,
                init_from=self._weights(claim.init_from) if claim.init_from else None,
                rung=self._rung(claim),
                curve=self._curve(claim.job_id) if checkpoint else (),
                custom_prefixes=self._settings.custom_prefixes,
                device=self._device,
            )
        )
        failpoint("start.after_fork")
        self._say(f"{claim.job_id} attempt {claim.attempt} runs as process {runner.pid}, log {log_name}.txt")
        sampler = Sampler(runner.pid, self._gpu)
        return Attempt(
            claim, runner, sampler, self._queue, self._paths, self._paths.log(log_name), clock=self._clock
        )

    def _rung(self, claim: Claim) -> Rung | None:
        """Find where on the OOM ladder to start: where the attempt before had to, or a job like this one."""
        config = claim.config
        if claim.resolved is not None:
            found = self._queue.rung(claim.job_id)
        elif config["training"]["deterministic"] or not config["oom"]["recover"]:
            found = None  # what a job computes must not depend on those before it
        else:
            gpu = None if config["device"] == "cpu" else self._gpu.name
            found = self._queue.rung_of_like(config, gpu)
        return None if found is None else Rung(**found)

    def _resume(self, at: Checkpoint) -> Resume:
        return Resume(self._paths.job(at.job_id) / at.name, at.sha256)

    def _weights(self, best: queue.Weights) -> Weights:
        return Weights(self._paths.job(best.job_id) / best.file, best.sha256, best.is_normalized)

    def _curve(self, job_id: str) -> tuple[Point, ...]:
        with self._queue.database.reading() as connection:
            epochs = since(connection, job_id, scopes=EPOCHS).epochs
        return tuple(
            Point(
                epoch["epoch"],
                epoch["train_loss"],
                epoch["val_loss"],
                epoch["train_accuracy"],
                epoch["val_accuracy"],
                is_best=epoch["best"],
            )
            for epoch in epochs
        )

    def _go_on_from(self, claim: Claim) -> Checkpoint | None:
        """Find the newest resume checkpoint that can be read, and bring the job's rows to its position."""
        at = claim.checkpoint
        while at is not None and (why := unreadable(self._paths, at)) is not None:
            self._say(f"{claim.job_id}: {why}; going back to the checkpoint before it")
            at = self._queue.discard_checkpoint(claim.job_id, claim.attempt, at, why)
        if claim.attempt > 1 or at is not None:
            self._queue.resume_at(claim.job_id, claim.attempt, at)
            sweep(self._paths, claim.job_id, self._queue.kept_files(claim.job_id))
        return at

    def _gpu_is_busy(self, claim: Claim) -> Reason | None:
        if claim.config["device"] == "cpu":
            return None
        holders = self._gpu.holders()
        vram = self._gpu.read()
        if vram is None or sum(holders.values()) <= vram.total * (1 - self._settings.vram_fraction):
            return None
        named = ", ".join(f"process {pid} with {held / 2**30:.1f} GB" for pid, held in holders.items())
        return Reason(
            "gpu_busy", f"The GPU is held by {named}.", "End it, or wait: the job starts when it is free."
        )

    def _end_attempt(self, attempt: Attempt) -> None:
        attempt.close()
        self.attempt = None
        self._is_unsure = True  # a database that went back in time may take it for running
        job_id = attempt.claim.job_id
        try:
            row = self._queue.get(job_id)
            self._say(f"{job_id} {row.status}" + (f" ({row.reason_code})" if row.reason_code else ""))
            self._settle(row)
        except Exception as error:
            self._say(f"{job_id} has ended, but: {error}")

    def _settle(self, row: Row) -> None:
        """Do what follows an attempt's end. The sweep comes last: tidy folders say that the rest is done."""
        if row.ending is not None and row.comparison_key is not None:
            best = self._queue.champion(row.comparison_key)
            if best is not None and best.id == row.id:
                self._say(f"{row.id} is the champion")
        sweep(self._paths, row.id, self._queue.kept_files(row.id))


def usable(config: Any) -> dict[str, Any] | Reason:
    """Give a stored config with what has been added to it since as by default; or say why it is of no use."""
    if isinstance(config, Damaged):
        return Reason("config_invalid", "The stored config of the job is damaged.", "Submit the job again.")
    try:
        return JobRequest.model_validate_json(json.dumps(config)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = "/" + "/".join(str(part) for part in first["loc"])
        message = f"The stored config is no longer valid: {place}: {first['msg']}."
        return Reason("config_invalid", message, "Clone the job with that field as it is to be now.")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")


def whoami() -> Owner:
    """Describe this process so that it can be told from a later one with the same pid."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return Owner(
        host=socket.gethostname(),
        boot_id=boot_id.read_text().strip() if boot_id.exists() else str(psutil.boot_time()),
        pid=os.getpid(),
        pid_start=psutil.Process().create_time(),
    )


def others(slots: Sequence[str | None], device: str | None) -> tuple[str, ...]:
    """Name the devices whose jobs a slot leaves to other slots. What no slot has is anybody's to refuse."""
    found = tuple(slot for slot in slots if slot is not None and slot != device)
    if device is not None and device.startswith("cpu") and any(slot.startswith("cuda") for slot in found):
        return (*found, "cuda")
    return found


def unwritable(paths: Paths) -> list[Path]:
    """Name the folders this process is to write to, and may not."""
    places = (paths.data_root, paths.data_root / "jobs", paths.logs_root)
    return [place for place in places if place.exists() and not os.access(place, os.W_OK | os.X_OK)]


def free_bytes(path: Path) -> int:
    """Measure the room on the disk of a path."""
    return shutil.disk_usage(path).free


def slot_of(path: Path) -> str:
    """Name the slot of a data root, for good: a host may be renamed, a container made anew."""
    with suppress(FileExistsError), path.open("x", encoding="ascii") as file:
        file.write(secrets.token_hex(8))
    return path.read_text(encoding="ascii")


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
    device = sys.argv[2] if sys.argv[1:2] == ["--device"] and sys.argv[2:] else settings.slots[0]
    if device not in settings.slots or (len(settings.slots) > 1 and not sys.argv[1:]):
        print(f"worker: say which slot, one of {settings.devices!r}: --device cuda:0", file=sys.stderr)
        return 2
    lock_path = Paths(settings.data_root, settings.logs_root).worker_lock(device)
    lock = hold_slot(lock_path)
    if lock is None:
        holder: dict[str, Any] = json.loads(lock_path.read_text() or "{}")
        what = "this data root" if device is None else f"{device} on this data root"
        say(f"another worker serves {what}: process {holder.get('pid')}, since {holder.get('since')}")
        return 0
    with lock:
        return _serve(settings, device)


def _serve(settings: Settings, slot: str | None) -> int:
    spawner = Spawner()
    spawner.warm_up()
    database = connect(settings.database, busy_timeout_s=DATABASE_BUSY_S)
    paths = Paths(settings.data_root.absolute(), settings.logs_root.absolute())
    supervisor = Supervisor(settings, Queue(database, paths=paths), spawner, say, device=slot)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        supervisor.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        if (file := database.file) is not None and file.exists():
            refuse_damaged(file, Paths(settings.data_root, settings.logs_root).database_backup())
            if (kind := network_file_system(file)) is not None:
                say(f"warning: the database lies on a network file system ({kind}), where locks are not safe")
        for place in unwritable(paths):
            say(f"warning: {place} cannot be written by user {os.geteuid()}; jobs that need it will not run")
        wait_for_head(database, timeout_s=10.0)
        supervisor.arrive()
    except StorageUnavailable as error:
        print(f"worker: {error.message} {error.hint or ''}", file=sys.stderr)
        return 1
    except WrongSchema as error:
        print(f"worker: {error}", file=sys.stderr)
        return 1
    gpu = machine(Gpu.of(slot))
    device = f"{gpu['gpu']}, {gpu['vram_total'] / 2**30:.1f} GB" if gpu["gpu"] else "cpu"
    if slot is not None:
        device = f"{slot} ({device})"
    say(f"worker ready on {device}; waiting for jobs")
    try:
        while not (supervisor.stopping and (supervisor.is_idle or supervisor.is_stuck)):
            supervisor.wait(supervisor.turn())
        supervisor.leave()
    finally:
        supervisor.close()  # else Python would wait for the runner, whatever went wrong here
        database.dispose()
    say("worker stopped")
    return 0


def say(line: str) -> None:
    """Print a line for the operator, at once."""
    print(line, flush=True)
