"""A worker at work on a small dataset, and what tests ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.jobs.queue import Queue, Row
from tests.factories import make_database, make_request, write_dataset
from tests.processes import Process, eventually, started

QUICK: dict[str, Any] = {
    "model": {"name": "mlp", "d_model": 8, "hidden": 8},
    "training": {"epochs": 2, "threads": 1},
    "data": {"path": "demo", "window": 4, "horizon_s": 0.0},
}
ENDLESS: dict[str, Any] = {
    **QUICK,
    "training": {"epochs": 100_000, "threads": 1},
    "early_stopping": {"patience": None},
}


@contextmanager
def open_queue(root: Path) -> Iterator[Queue]:
    """Make a data root with the dataset "demo" and an empty queue."""
    write_dataset(root / "data" / "demo", rows=400)
    database = make_database(root / "data")
    yield Queue(database)
    database.dispose()


@contextmanager
def worker(root: Path, **settings: str) -> Iterator[Process]:
    """Run a worker for the length of the block."""
    with started("-m", "worker", root=root, **settings) as process:
        process.says("worker ready")
        yield process


@dataclass(frozen=True)
class Site:
    """A worker at work, shared by the tests that leave it alive."""

    root: Path
    queue: Queue
    process: Process


def submit(queue: Queue, **sections: Any) -> str:
    return str(queue.submit(make_request(**{**QUICK, **sections}))[0].id)


def ended(queue: Queue, job_id: str, *, within_s: float = 60) -> Row:
    """Wait for the end of a job."""

    def final() -> Row | None:
        row = queue.get(job_id)
        return row if row.finished_at is not None else None

    row = eventually(
        final, within_s=within_s, what=f"the end of the job ({queue.get(job_id).reason_message})"
    )
    assert row is not None
    return row


def runner_pid(queue: Queue, process: Process, job_id: str, *, epoch: int = 2) -> int:
    """Wait until the job trains, and find the process that trains it."""
    eventually(lambda: (queue.get(job_id).epoch or 0) >= epoch, what=f"epoch {epoch}")
    return last_runner_pid(process, job_id)


def last_runner_pid(process: Process, job_id: str) -> int:
    """Find the process of the newest attempt at a job."""
    line = [line for line in process.output.splitlines() if job_id in line and "runs as process" in line][-1]
    return int(line.split("runs as process ")[1].split(",")[0])


def log_of(root: Path, row: Row) -> str:
    return (root / "logs" / f"{row.log_name}.txt").read_text()
