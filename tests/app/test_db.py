"""Engines on real SQLite files."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.db import connect
from app.errors import StorageUnavailable
from app.jobs.tables import worker
from tests.factories import make_database


def test_sqlite_is_set_up_for_an_api_and_a_worker(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with database.reading() as connection:
        found = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "mmap_size")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "mmap_size": 0,
    }


def test_times_come_back_aware_and_exact(tmp_path: Path) -> None:
    database = make_database(tmp_path)
    at = datetime(2026, 11, 23, 1, 2, 3, 456789, tzinfo=UTC)
    with database.writing() as connection:
        connection.execute(
            worker.insert().values(slot="a", owner={}, machine={}, started_at=at, heartbeat_at=at)
        )
    with database.reading() as connection:
        assert connection.execute(sa.select(worker.c.started_at)).scalar_one() == at


def test_writers_that_read_first_wait_for_each_other(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE counter (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO counter VALUES (0)")

    def count() -> None:
        for _ in range(50):
            with database.writing() as connection:
                n = connection.exec_driver_sql("SELECT n FROM counter").scalar_one()
                connection.exec_driver_sql(f"UPDATE counter SET n = {n + 1}")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT n FROM counter").scalar_one() == 200


def test_a_database_held_by_another_program_is_named_not_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    database = connect(f"sqlite:///{path}", busy_timeout_s=0.05)
    with database.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StorageUnavailable, match="locked"), database.writing():
            pass
        with database.reading() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar_one() == 0
    finally:
        holder.close()
