"""The schema's version: where it is, where it should be, and the way there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from app.database_file import refuse_damaged
from app.db import Database, connect
from app.jobs.files import Paths

MIGRATION_LOCK = 0x5A1319  # any number, the same for all


class WrongSchema(Exception):
    """The database is not at the version this code needs; the message says what to run."""


def head() -> str:
    """Name the version this code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """Name the version the database is at; null when it has no schema yet."""
    with database.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database, data_root: Path | None = None) -> None:
    """Bring the database to the newest version, in one transaction. Raises WrongSchema if it is newer.

    data_root: where a version finds what older ones kept in files; null = there are none.
    """
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":
            # Two that start at once: the second waits, and finds nothing left to do.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        _refuse_newer(MigrationContext.configure(connection).get_current_revision())
        config = _config()
        config.attributes |= {"connection": connection, "data_root": data_root}
        command.upgrade(config, "head")


def refuse_newer(database: Database) -> None:
    """Raise WrongSchema when the database was made by a version of the product this one does not know."""
    _refuse_newer(current(database))


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise WrongSchema(
            f"the database is at schema {revision}, newer than this program knows: update the program"
        )


def wait_for_head(
    database: Database, *, timeout_s: float, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until another process has brought the schema up to date; raise WrongSchema past the timeout."""
    refuse_newer(database)
    deadline = time.monotonic() + timeout_s
    while (found := current(database)) != head():
        if time.monotonic() >= deadline:
            raise WrongSchema(
                f"the database is at schema {found}, this program needs {head()}: run `saimp migrate`"
            )
        sleep(0.1)


def migrate(url: str, paths: Paths) -> None:
    """Open the database at a URL and bring it to the newest version; a damaged file is left as it is.

    Raises WrongSchema, StorageUnavailable.
    """
    database = connect(url)
    try:
        if database.file is not None and database.file.exists():
            refuse_damaged(database.file, paths.database_backup())
        upgrade(database, paths.data_root)
    finally:
        database.dispose()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config
