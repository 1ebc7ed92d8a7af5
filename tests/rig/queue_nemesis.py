"""Thousands of SIGKILLs on the queue: real supervisors, a toy training, clients that die in mid-sentence.

    python -m tests.rig.queue_nemesis --kills 1000 --seed 7 [--url postgres]

The parent keeps the journal of what was acknowledged, kills, stops and continues, and starts again what has
died. Then it lets the queue run dry and holds database, files and outcomes against journal and model: nothing
acknowledged is lost, nothing runs twice at once, nothing is stuck, ends are final, and every job that
succeeded has come to the numbers of a training that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import worker.attempt
import worker.supervisor
from app.db import Database, connect
from app.errors import ServiceError
from app.jobs.config import JobRequest
from app.jobs.metrics import since
from app.jobs.queue import Queue, Row, running
from app.jobs.states import FINAL, Status
from app.migrate import upgrade
from app.settings import Settings
from tests.postgres.server import fresh_database
from tests.rig.files import assert_sound
from tests.rig.house import children, is_alive
from tests.rig.toy import ToySpawner, outcome
from tests.rig.witness import violations

SLOTS, CLIENTS = 3, 2
MAX_LIVE = 8  # jobs that may still run, so that they meet
BUSY_S = 30.0
LOOK_EVERY_S = 0.002
DRY_S = 120.0


@dataclass
class Plan:
    """Whom to hurt, how, and how long after its start (early) or its runner's or first word (late)."""

    victim: str
    when: str
    how: str
    delay_s: float
    at: float = 0.0  # once the waiting has begun


@dataclass
class Child:
    """A process of the parent's: a supervisor, or a client."""

    role: str
    number: int
    pid: int = 0
    pipe: int = -1  # what a client says
    heard: bytes = b""
    plan: Plan | None = None
    acknowledged: int = 0  # since its start


@dataclass
class Journal:
    """What clients said. Who dies before the answer has promised nothing."""

    submitted: dict[str, int] = field(default_factory=dict)  # job -> seed
    cancelled: set[str] = field(default_factory=set)  # by a client who may have died before the answer
    is_cancelled: set[str] = field(default_factory=set)  # acknowledged as done
    ended: dict[str, str] = field(default_factory=dict)  # what was seen to be final

    def note(self, line: str) -> None:
        verb, job_id, *rest = line.split()
        if verb == "submit":
            self.submitted[job_id] = int(rest[0])
        elif verb == "cancel":
            self.cancelled.add(job_id)
            if rest == ["done"]:
                self.is_cancelled.add(job_id)


class Nemesis:
    """One round: a fresh database, a seed, so many kills."""

    def __init__(self, root: Path, database: Database, seed: int) -> None:
        self.root = root
        self.seed = seed
        self.kills = 0
        self.faults: Counter[str] = Counter()
        self.journal = Journal()
        self._database = database
        self._queue = Queue(database)
        self._draw = random.Random(seed)
        self._witness = root / "witness"
        self._witness.mkdir()
        self._stop_file = root / "stop"  # there once clients shall leave
        self._children: list[Child] = []
        self._seen: set[int] = set()
        self._stopped: list[tuple[float, int]] = []  # processes to continue, and when

    # ---- the round ----

    def run(self, kills: int) -> None:
        """Kill so many times, then hold everything to account."""
        for number in range(SLOTS):
            _make_slot(self.root, number)
            self._children.append(Child("worker", number))
        self._children += [Child("client", number) for number in range(CLIENTS)]
        try:
            while self.kills < kills:
                self._tend()
                time.sleep(LOOK_EVERY_S)
                self._strike()
            self._run_dry()
            self._judge()
        finally:
            self._end_all()

    def _strike(self) -> None:
        """Carry out the plans that are due, and make new ones."""
        now = time.monotonic()
        for child in self._children:
            plan = child.plan = child.plan or self._plan(child)
            pid = child.pid
            if child.role == "client" and plan.when == "late" and not child.acknowledged:
                continue
            if child.role == "worker" and plan.when == "late":
                runners = children(child.pid)
                if not runners:
                    continue
                pid = runners[0] if plan.victim == "runner" else pid
            plan.at = plan.at or now + plan.delay_s
            if plan.at > now:
                continue
            child.plan = None
            if is_alive(pid):
                self._hurt(plan, pid)

    def _plan(self, child: Child) -> Plan:
        draw = self._draw
        if child.role == "client":
            how = draw.choices(["kill", "stop"], [90, 10])[0]
            when = draw.choices(["early", "late"], [20, 80])[0]
            return Plan("client", when, how, draw.uniform(0.0, 0.3))
        victim, when = draw.choice([("worker", "early"), ("worker", "late"), ("runner", "late")])
        how = draw.choices(["kill", "stop", "term"], [85, 10, 5 if victim == "worker" else 0])[0]
        return Plan(victim, when, how, draw.uniform(0.0, 0.08 if when == "early" else 0.04))

    def _hurt(self, plan: Plan, pid: int) -> None:
        self.faults[f"{plan.how} {plan.victim}"] += 1
        with suppress(ProcessLookupError):
            match plan.how:
                case "kill":
                    os.kill(pid, signal.SIGKILL)
                    self.kills += 1
                case "stop":
                    os.kill(pid, signal.SIGSTOP)
                    self._stopped.append((time.monotonic() + self._draw.uniform(0.02, 0.3), pid))
                case "term":
                    os.kill(pid, signal.SIGTERM)

    def _tend(self) -> None:
        """Hear the clients, continue what was stopped, start again what has died."""
        now = time.monotonic()
        for at, pid in [one for one in self._stopped if one[0] <= now]:
            self._stopped.remove((at, pid))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for child in self._children:
            self._hear(child)
            if child.pid == 0 or os.waitpid(child.pid, os.WNOHANG)[0]:
                self._hear(child)
                self._start(child)
            self._seen.update(children(child.pid))

    def _hear(self, child: Child) -> None:
        if child.pipe < 0:
            return
        with suppress(BlockingIOError):
            while chunk := os.read(child.pipe, 1 << 16):
                *lines, child.heard = (child.heard + chunk).split(b"\n")
                child.acknowledged += len(lines)
                for line in lines:
                    self.journal.note(line.decode())

    def _run_dry(self) -> None:
        """Disturb nothing more: all that waits must come to its end by itself."""
        self._stop_file.touch()
        self._children = [child for child in self._children if child.role == "worker" or self._leaves(child)]
        deadline = time.monotonic() + DRY_S
        while rows := self._live():
            self._stopped = [(0.0, pid) for _, pid in self._stopped]
            self._tend()
            for row in rows:
                if row.status == Status.PAUSED:
                    self._queue.resume(row.id)
            stuck = [(row.id, row.status, row.reason_code, row.attempt) for row in rows]
            assert time.monotonic() < deadline, f"stuck: {stuck}"
            time.sleep(0.05)
        self._note_ends()
        for child in self._children:
            os.kill(child.pid, signal.SIGTERM)
            _, status = os.waitpid(child.pid, 0)
            assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGTERM), status
        self._children = []

    def _leaves(self, client: Child) -> bool:
        """Wait for a client to leave; false, always."""
        with suppress(ProcessLookupError):
            os.kill(client.pid, signal.SIGCONT)
        os.waitpid(client.pid, 0)
        self._hear(client)
        return False

    def _live(self) -> list[Row]:
        statuses = [status for status in Status if status not in FINAL]
        return list(self._queue.page(statuses=statuses, limit=1000)[0])

    def _note_ends(self) -> None:
        for row in self._queue.page(statuses=sorted(FINAL), limit=100_000)[0]:
            assert self.journal.ended.setdefault(row.id, row.status) == row.status, f"{row.id} ended twice"

    # ---- the judgement ----

    def _judge(self) -> None:
        rows = {row.id: row for row in self._queue.page(limit=100_000)[0]}
        lost = set(self.journal.submitted) - set(rows)
        assert not lost, f"acknowledged and lost: {lost}"
        for row in rows.values():
            self._judge_job(row)
        for job_id in self.journal.is_cancelled:
            assert rows[job_id].status == Status.CANCELLED, (job_id, rows[job_id].status)
        assert violations(self._witness) == "", violations(self._witness)
        assert_sound(self._queue, self.root)
        deadline = time.monotonic() + 5
        while left := [pid for pid in self._seen if is_alive(pid)]:
            assert time.monotonic() < deadline, f"left over: {left}"
            time.sleep(0.02)

    def _judge_job(self, row: Row) -> None:
        if row.status == Status.CANCELLED:
            assert row.id in self.journal.cancelled, f"{row.id} was cancelled by nobody"
            return
        assert row.status == Status.SUCCEEDED, (row.id, row.status, row.reason_code, row.reason_message)
        expected = outcome(row.config["training"]["seed"])
        with self._database.reading() as connection:
            found = since(connection, row.id)
        assert found.batches["loss"] == expected.losses, row.id
        assert [one["val_loss"] for one in found.epochs] == expected.val_losses, row.id
        assert [one["best"] for one in found.epochs] == expected.bests, row.id
        assert row.best_sha256 == expected.best_sha256, row.id

    # ---- processes ----

    def _start(self, child: Child) -> None:
        if child.pipe >= 0:
            os.close(child.pipe)
            child.pipe = -1
        reader, writer = os.pipe()
        number = self._draw.getrandbits(32)
        child.pid = os.fork()
        if not child.pid:
            os.close(reader)
            self._become(child, writer, number)
        os.close(writer)
        os.set_blocking(reader, False)
        child.pipe, child.heard, child.plan, child.acknowledged = reader, b"", None, 0
        self._seen.add(child.pid)

    def _end_all(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for pid in self._seen:
            if is_alive(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for child in self._children:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, 0)

    def _become(self, child: Child, writer: int, number: int) -> NoReturn:
        code = 1
        try:
            for other in self._children:
                if other.pipe >= 0:
                    os.close(other.pipe)
            output = os.open(
                self.root / f"{child.role}-{child.number}.out", os.O_WRONLY | os.O_APPEND | os.O_CREAT
            )
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._database.read_engine.dispose(close=False)
            self._database.write_engine.dispose(close=False)
            if child.role == "worker":
                code = self._serve(child.number)
            else:
                _ask(self._database, writer, random.Random(number), self._stop_file)
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _serve(self, number: int) -> int:
        """Be a supervisor: `worker.supervisor.main` at the pace of the rig, on an engine that is warm."""
        supervisor: Any = worker.supervisor
        supervisor.Spawner = lambda: ToySpawner(self._witness)
        supervisor.connect = lambda *_, **__: self._database
        supervisor.wait_for_head = lambda *_, **__: None
        supervisor.load = lambda: _settings(self.root, number)
        supervisor.IDLE_WAIT_S = supervisor.BUSY_WAIT_S = 0.005
        supervisor.BEAT_S, supervisor.LEASE_S = 0.5, 0.1
        worker.attempt.FLUSH_S = 0.005
        running.BACKOFF_S = (0.0, 0.0, 0.0)
        return worker.supervisor.main()


def _settings(root: Path, number: int) -> Settings:
    return Settings(data_root=root / f"slot-{number}", logs_root=root / "logs")


def _make_slot(root: Path, number: int) -> None:
    """A slot has a data root of its own; the jobs are common to all."""
    folder = root / f"slot-{number}"
    folder.mkdir()
    (root / "data" / "jobs").mkdir(parents=True, exist_ok=True)
    (folder / "jobs").symlink_to(root / "data" / "jobs")


def _ask(database: Database, writer: int, draw: random.Random, stop_file: Path) -> None:
    """Be a client: submit, cancel, pause, resume, and say what is wanted and what was acknowledged."""
    queue = Queue(database)
    while not stop_file.exists():
        time.sleep(draw.expovariate(1 / 0.02))
        live = queue.page(statuses=[Status.QUEUED, Status.RUNNING, Status.PAUSED], limit=50)[0]
        verb = draw.choices(["submit", "cancel", "pause", "resume"], [50, 5, 15, 30])[0]
        if verb == "submit":
            if len(live) < MAX_LIVE:
                seed = draw.getrandbits(31)
                row, _ = queue.submit(_request(seed), idempotency_key=f"{seed}-{draw.random()}")
                _say(writer, f"submit {row.id} {seed}")
            continue
        if not live:
            continue
        job_id = draw.choice(live).id
        _say(writer, f"{verb} {job_id} wanted")
        with suppress(ServiceError):  # it may have ended meanwhile
            _, is_done = getattr(queue, verb)(job_id)
            _say(writer, f"{verb} {job_id} {'done' if is_done else 'asked'}")


def _say(writer: int, line: str) -> None:
    os.write(writer, line.encode() + b"\n")


def _request(seed: int) -> JobRequest:
    body = {
        "data": {"path": "toy"},
        "device": "cpu",
        "training": {"seed": seed},
        "max_attempts": 100,
        "checkpoint": {"every_s": 0},
    }
    return JobRequest.model_validate(body)


def _warm(database: Database) -> None:
    """Compile what the children will execute: they inherit it."""
    queue = Queue(database)
    job_id = queue.submit(_request(0))[0].id
    queue.cancel(job_id)
    queue.delete(job_id)


def rampage(kills: int, seed: int, url: str = "sqlite") -> dict[str, Any]:
    """Do one round; return its totals. What fails says how to do it again."""
    began = time.monotonic()
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no power is cut here: a disk adds nothing
    root = Path(tempfile.mkdtemp(prefix="saimp-nemesis-", dir=fast))
    try:
        with ExitStack() as stack:
            (root / "data").mkdir()
            (root / "logs").mkdir()
            if url == "postgres":
                database = stack.enter_context(fresh_database())
            else:
                database = connect(f"sqlite:///{root / 'data' / 'saimp.db'}", busy_timeout_s=BUSY_S)
                upgrade(database)
                stack.callback(database.dispose)
            _warm(database)
            database.dispose()
            nemesis = Nemesis(root, database, seed)
            nemesis.run(kills)
    except BaseException as error:
        again = f"python -m tests.rig.queue_nemesis --kills {kills} --seed {seed} --url {url}"
        error.add_note(f"seed {seed}; again: {again}; left in {root}")
        raise
    shutil.rmtree(root)
    return {
        "seed": seed,
        "engine": url,
        "kills": nemesis.kills,
        "jobs": len(nemesis.journal.ended),
        "acknowledged": len(nemesis.journal.submitted),
        "seconds": round(time.monotonic() - began, 1),
        "faults": dict(sorted(nemesis.faults.items())),
    }


def main() -> int:
    """Read the options, do one round, print its totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(datetime.now(UTC).timestamp()))
    parser.add_argument("--url", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    print(json.dumps(rampage(options.kills, options.seed, options.url)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
