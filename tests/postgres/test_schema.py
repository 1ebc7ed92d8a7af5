"""The schema on both engines: what migrations make is what the tables say, and old rows come along."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from app import migrate
from app.db import Database, connect
from app.jobs.queue import Queue
from app.jobs.tables import metadata
from tests.factories import OWNER, SLOT
from tests.postgres.engines import ENGINES
from tests.postgres.server import fresh_database

Pair = tuple[Database, Database]


@pytest.fixture(params=ENGINES)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Two empty databases of an engine."""
    with ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            if request.param == "postgres":
                made.append(stack.enter_context(fresh_database(is_migrated=False)))
            else:
                made.append(connect(f"sqlite:///{tmp_path / name}.db"))
                stack.callback(made[-1].dispose)
        yield made[0], made[1]


def described(database: Database) -> dict[str, Any]:
    inspector = sa.inspect(database.read_engine)
    found = {}
    for table in sorted(inspector.get_table_names()):
        if table != "alembic_version":
            columns = inspector.get_columns(table)
            found[table] = (
                {c["name"]: (str(c["type"]), c["nullable"], c["default"]) for c in columns},
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted((c["name"] or "", c["sqltext"]) for c in inspector.get_check_constraints(table)),
                sorted(
                    (i["name"] or "", i["unique"], i["column_names"]) for i in inspector.get_indexes(table)
                ),
                sorted(
                    (k["name"] or "", k["options"].get("ondelete")) for k in inspector.get_foreign_keys(table)
                ),
            )
    return found


def test_the_migrations_make_the_schema_of_the_tables(empty: Pair) -> None:
    upgraded, fresh = empty
    migrate.upgrade(upgraded)
    with fresh.writing() as connection:
        metadata.create_all(connection)
    with upgraded.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    assert described(upgraded) == described(fresh)


def test_jobs_of_the_first_schema_keep_their_rows_and_their_order(empty: Pair) -> None:
    database, _ = empty
    ids = [f"01ARZ3NDEKTSV4RRFFQ69G5FA{letter}" for letter in "VWX"]
    with database.writing() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for job_id in ids:
            connection.exec_driver_sql(
                "INSERT INTO job (id, tags, metadata, status, priority, run_after, max_attempts, attempt,"
                " crashes, config, config_hash, warnings, created_at, runtime_s, seq) VALUES"
                f" ('{job_id}', '[]', '{{}}', 'queued', 0, {5 if job_id == ids[2] else 'NULL'}, 3, 0, 0,"
                " '{}', 'x', '[]', 0, 0, 1)"
            )
            connection.exec_driver_sql(
                "INSERT INTO event (job_id, seq, time, kind, attempt, data) VALUES"
                f" ('{job_id}', 1, 0, 'submitted', 0, '{{}}')"
            )
    migrate.upgrade(database)
    queue = Queue(database)
    assert [row.id for row in queue.line()] == ids
    assert [len(queue.events(job_id)) for job_id in ids] == [1, 1, 1]
    last = queue.get(ids[2])
    assert (last.run_after, last.not_before is None) == (None, False)
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    assert taken.job_id == ids[0]


def test_two_migrations_at_once_make_one_schema() -> None:
    with fresh_database(is_migrated=False) as database, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate.upgrade, database) for _ in range(4)]:
            done.result()
        assert migrate.current(database) == migrate.head()
