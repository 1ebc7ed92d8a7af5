"""The schema's version on real SQLite files."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from app.db import connect
from app.jobs.tables import metadata
from app.migrate import WrongSchema, current, head, upgrade, wait_for_head


def test_the_migrations_make_the_schema_of_the_tables(tmp_path: Path) -> None:
    upgraded, fresh = connect(f"sqlite:///{tmp_path / 'a.db'}"), connect(f"sqlite:///{tmp_path / 'b.db'}")
    upgrade(upgraded)
    assert current(upgraded) == head()
    with fresh.writing() as connection:
        metadata.create_all(connection)
    with upgraded.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []

    def described(database: object) -> dict[str, object]:
        inspector = sa.inspect(database.read_engine)  # type: ignore[attr-defined]
        return {
            table: (
                sorted((c["name"] or "", c["sqltext"]) for c in inspector.get_check_constraints(table)),
                sorted((i["name"] or "", i["unique"]) for i in inspector.get_indexes(table)),
                inspector.get_table_options(table),
            )
            for table in inspector.get_table_names()
            if table != "alembic_version"
        }

    assert described(upgraded) == described(fresh)


def test_upgrade_twice_changes_nothing(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    upgrade(database)
    upgrade(database)
    assert current(database) == head()


def test_an_empty_database_says_what_to_run(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(WrongSchema, match="saimp migrate"):
        wait_for_head(database, timeout_s=0)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    database = connect(f"sqlite:///{tmp_path / 'a.db'}")
    upgrade(database)
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(WrongSchema, match="newer"):
        upgrade(database)
