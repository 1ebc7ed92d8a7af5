"""A supervisor with runners that are not processes, so that a test can be at any instant of an attempt."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.jobs.files import Paths
from app.jobs.queue import Queue, Row
from app.settings import Settings
from tests.factories import make_database, make_request
from worker.assignment import Assignment, Order
from worker.attempt import Attempt
from worker.engine.events import BestFile, EpochDone, Event, Prepared
from worker.publish import write_sidecar
from worker.supervisor import Supervisor


class FakeRunner:
    """What `worker.spawn.Runner` shows; the test says what happens to it."""

    pid = 2**22 + 5  # beyond any real one

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.is_alive, self.is_drained = True, False
        self.exit_code: int | None = None
        self.orders: list[Order] = []
        self.kills = 0

    def order(self, order: Order) -> None:
        self.orders.append(order)

    def kill(self) -> None:
        self.kills += 1

    def dump_stacks(self) -> None:
        pass

    def close(self) -> None:
        pass

    def die(self, exit_code: int = 0) -> None:
        self.is_alive, self.is_drained, self.exit_code = False, True, exit_code


class FakeSpawner:
    def __init__(self) -> None:
        self.assignments: list[Assignment] = []
        self.error: Exception | None = None

    def start(self, assignment: Assignment) -> FakeRunner:
        if self.error is not None:
            raise self.error
        self.assignments.append(assignment)
        return FakeRunner()


@dataclass
class Bench:
    """A supervisor, its queue on a real SQLite file, and a clock to turn."""

    root: Path
    queue: Queue
    supervisor: Supervisor
    spawner: FakeSpawner
    said: list[str]
    time: float = 0.0
    paths: Paths = field(init=False)

    def __post_init__(self) -> None:
        self.paths = Paths(self.root / "data", self.root / "logs")

    @property
    def attempt(self) -> Attempt:
        assert self.supervisor.attempt is not None
        return self.supervisor.attempt

    @property
    def runner(self) -> FakeRunner:
        runner: Any = self.attempt.runner
        assert isinstance(runner, FakeRunner)
        return runner

    def begin(self, **sections: Any) -> str:
        """Submit a job and let the supervisor start it."""
        job_id = str(self.queue.submit(make_request(**sections))[0].id)
        self.supervisor.turn()
        return job_id

    def begin_comparable(self, key: str) -> str:
        """Start a job whose split is settled, so that its comparison key is known."""
        job_id = self.begin()
        self.says(Prepared({}, {}, key))
        return job_id

    def pass_time(self, seconds: float) -> None:
        """Let time pass, then let the supervisor turn."""
        self.time += seconds
        self.supervisor.turn()

    def looks_on(self, seconds: float) -> None:
        """Let time pass in short turns, as a supervisor that is not stopped sees it."""
        for _ in range(round(seconds / 10)):
            self.pass_time(10)

    def says(self, *events: Event) -> None:
        """Let the runner report, and the supervisor commit."""
        for event in events:
            self.runner.inbox.put(event)
        self.pass_time(1.0)

    def dies(self, exit_code: int = 0) -> None:
        self.runner.die(exit_code)
        self.supervisor.turn()

    def row(self, job_id: str) -> Row:
        return self.queue.get(job_id)

    def best(self, epoch: int, val_loss: float) -> EpochDone:
        """Make an epoch that is a best, its file and sidecar on disk."""
        directory = self.attempt_directory
        name, sha256 = f"best-e{epoch:04d}-{'a' * 16}.pth", f"{epoch:064d}"
        (directory / name).write_bytes(name.encode())
        metrics = {"val_loss": val_loss}
        best = BestFile(name, sha256, 3, None, {"sha256": sha256, "metrics": metrics})
        write_sidecar(directory, best)
        return EpochDone(
            epoch,
            1.0,
            0.5,
            val_loss,
            0.5,
            [[1, 0], [0, 1]],
            [[1, 0], [0, 1]],
            0.1,
            1e-3,
            1.0,
            1.0,
            0,
            None,
            None,
            0,
            3,
            best,
        )

    @property
    def attempt_directory(self) -> Path:
        return self.spawner.assignments[-1].directory


def make_bench(root: Path) -> Bench:
    """Make a supervisor that has taken its slot."""
    (root / "data").mkdir(exist_ok=True)
    jobs = Queue(make_database(root / "data"), paths=Paths(root / "data", root / "logs"))
    settings = Settings(data_root=root / "data", logs_root=root / "logs")
    spawner, said = FakeSpawner(), list[str]()
    clock: list[Bench] = []
    made: Any = spawner
    supervisor = Supervisor(settings, jobs, made, said.append, clock=lambda: clock[0].time if clock else 0.0)
    bench = Bench(root, jobs, supervisor, spawner, said)
    clock.append(bench)
    supervisor.arrive()
    return bench
