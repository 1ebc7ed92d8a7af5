"""Engines by URL: SQLite, or PostgreSQL. One engine reads, in a snapshot; the other writes.

SQLite: WAL, and every transaction that may write is BEGIN IMMEDIATE, so that a SELECT-then-UPDATE in a
deferred transaction ("database is locked") cannot be written. PostgreSQL: reads are REPEATABLE READ and
read-only; a verb that reads before it writes locks the row it read (FOR UPDATE, which SQLite leaves out).
"""

from __future__ import annotations

import json
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite

from app.database_file import Identity, identity
from app.errors import StorageDamaged, StorageFull, StorageUnavailable
from app.failpoints import failpoint

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How long a writer waits before it looks again whether it is its turn.
LOOK_AGAIN_S = (0.002, 0.006)
_UNDONE = "saimp.undone"
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware UTC datetime stored as integer microseconds since 1970."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


class Finite(sa.TypeDecorator[float]):
    """A float; what is not finite is NULL on every engine."""

    impl = sa.Float
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> float | None:
        return value if value is not None and math.isfinite(value) else None


def when_undone(connection: sa.Connection, act: Callable[[], None]) -> None:
    """Call `act` after this transaction if it comes to nothing, for all that is known: it failed."""
    acts: list[Callable[[], None]] = connection.info[_UNDONE]
    if act not in acts:
        acts.append(act)


class Damaged(dict[str, Any]):
    """What stands where the JSON of a row cannot be read: nothing, so that the other rows can be."""


class _SQLiteCompiler(sqlite.dialect.statement_compiler):  # type: ignore[misc, name-defined]
    """A value inside damaged JSON is NULL: else one row would fail every query over all."""

    def visit_json_getitem_op_binary(self, binary: Any, operator: Any, **named: Any) -> str:
        return self._of_whole(binary, super().visit_json_getitem_op_binary(binary, operator, **named), named)

    def visit_json_path_getitem_op_binary(self, binary: Any, operator: Any, **named: Any) -> str:
        found = super().visit_json_path_getitem_op_binary(binary, operator, **named)
        return self._of_whole(binary, found, named)

    def _of_whole(self, binary: Any, found: str, named: dict[str, Any]) -> str:
        return f"CASE WHEN json_valid({self.process(binary.left, **named)}) THEN {found} END"


def server_time(dialect: str, *, plus_s: float = 0.0) -> sa.ColumnElement[datetime]:
    """Write the time, and some seconds, by the clock all hosts share: the server's.

    SQLite has one host; its clock comes as the parameter `now`.
    """
    if dialect == "sqlite":
        return later(sa.bindparam("now", type_=UtcTime), plus_s)
    seconds = sa.func.extract("epoch", sa.func.clock_timestamp())
    return later(sa.type_coerce(sa.cast(seconds * 1_000_000, sa.BigInteger), UtcTime), plus_s)


def later(than: sa.ColumnElement[datetime], by_s: float) -> sa.ColumnElement[datetime]:
    """Write the time some seconds after another."""
    return than.op("+", return_type=UtcTime())(sa.literal(round(by_s * 1_000_000), sa.BigInteger))


@dataclass(frozen=True)
class Database:
    """Where jobs live. `reading()` sees one snapshot; `writing()` is one write transaction."""

    read_engine: sa.Engine
    write_engine: sa.Engine

    @property
    def file(self) -> Path | None:
        """The SQLite file; null where a server keeps the jobs."""
        return _file(self.write_engine.url)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with _named_errors(), self.read_engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self, verb: str | None = None) -> Iterator[sa.Connection]:
        """verb: names the failpoints before and after the commit."""
        undone: list[Callable[[], None]] = []
        try:
            with _named_errors(), self.write_engine.begin() as connection:
                connection.info[_UNDONE] = undone
                yield connection
                if verb is not None:
                    failpoint(f"{verb}.before_commit")
        except BaseException:
            for act in undone:
                act()
            raise
        if verb is not None:
            failpoint(f"{verb}.after_commit")

    def dispose(self) -> None:
        self.read_engine.dispose()
        self.write_engine.dispose()


def connect(url: str, *, busy_timeout_s: float = 5.0) -> Database:
    """Open the database behind a URL; nothing is created but an empty SQLite file on first use."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        opened: list[Identity | None] = []
        return Database(
            _sqlite_engine(parsed, busy_timeout_s, opened, is_writing=False),
            _sqlite_engine(parsed, busy_timeout_s, opened, is_writing=True),
        )
    engine = _postgres_engine(parsed, busy_timeout_s)
    reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    return Database(reader, engine)


def _postgres_engine(url: sa.URL, busy_timeout_s: float) -> sa.Engine:
    engine = sa.create_engine(
        url,
        json_serializer=_to_json,
        json_deserializer=_from_json,
        pool_pre_ping=True,
        pool_size=5,
        max_overflow=40,  # as many as the API has threads
        # A server that no longer answers is found out in seconds.
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
        },
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(busy_timeout_s * 1000)}")
            cursor.execute("SET idle_in_transaction_session_timeout = 60000")
            cursor.execute("SET timezone = 'UTC'")
        connection.commit()

    return engine


def _sqlite_engine(
    url: sa.URL, busy_timeout_s: float, opened: list[Identity | None], *, is_writing: bool
) -> sa.Engine:
    """opened: the file as it was first opened, noted by the first connection of all engines."""
    engine = sa.create_engine(url, json_serializer=_to_json, json_deserializer=_from_json)
    engine.dialect.statement_compiler = _SQLiteCompiler

    path = _file(url)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where sqlite3 guesses
        for pragma, value in (
            ("busy_timeout", round(busy_timeout_s * 1000)),
            ("journal_mode", "wal"),
            ("synchronous", 2),  # FULL: an accepted job survives a power cut
            ("foreign_keys", 1),
            ("trusted_schema", 0),
            ("temp_store", 2),
            ("mmap_size", 0),
        ):
            connection.execute(f"PRAGMA {pragma}={value}").fetchone()
            got = connection.execute(f"PRAGMA {pragma}").fetchone()
            # A PRAGMA that fails does not raise: compare what it became.
            if got is not None and got[0] != value:
                raise StorageUnavailable(
                    f"SQLite refuses {pragma}={value} (it stays {got[0]}).",
                    "Keep the database on a local disk; network file systems cannot hold it.",
                )
        if is_writing:
            connection.execute("PRAGMA busy_timeout=0").fetchone()  # begins by `_begin_immediate`
        if path is not None and not opened:
            opened.append(identity(path))

    @event.listens_for(engine, "begin")
    def start(connection: sa.Connection) -> None:
        if path is not None and identity(path) != opened[0]:
            raise StorageDamaged(
                f"{path.name} was removed or replaced while the service runs.",
                "Nothing is written any more. Put the file back, or restart the service.",
            )
        if is_writing:
            _begin_immediate(connection, busy_timeout_s)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _file(url: sa.URL) -> Path | None:
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def _begin_immediate(connection: sa.Connection, busy_timeout_s: float) -> None:
    """Wait for the turn to write.

    SQLite's own wait sleeps the longer the longer it has waited, up to 100 ms: among many writers whoever
    comes late goes first, and some wait for seconds. Here all look equally often.
    """
    raw: Any = connection.connection.dbapi_connection
    give_up_at = time.monotonic() + busy_timeout_s
    while time.monotonic() < give_up_at:
        try:
            raw.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                break
        time.sleep(random.uniform(*LOOK_AGAIN_S))
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # its error, by SQLAlchemy's name


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise StorageUnavailable("All connections to the database are busy.", "Try again.") from error
    except sa.exc.DBAPIError as error:
        if not _is_storage(error):
            raise
        raise _named(error) from error


def _named(error: sa.exc.DBAPIError) -> StorageUnavailable:
    code = getattr(error.orig, "sqlite_errorname", None) or getattr(error.orig, "sqlstate", None) or ""
    message = f"The database did not answer: {str(error.orig).strip().splitlines()[0]}."
    # A quota and a limit on file sizes look like a failed write; 53100 is PostgreSQL's full disk.
    if code in ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "53100"):
        return StorageFull(message, "Nothing was changed. Free space on the disk of the database; try again.")
    if code.startswith(_DAMAGED):
        return StorageDamaged(message, "Nothing is written. Restart the service: it says what to do.")
    return StorageUnavailable(
        message,
        "Try again: with an Idempotency-Key, what has gone through after all counts once. If it stays, look"
        " for another program that holds the database.",
    )


def _is_storage(error: sa.exc.DBAPIError) -> bool:
    """Whether the database failed, and not the statement."""
    if isinstance(error, sa.exc.OperationalError) or error.connection_invalidated:
        return True
    # A damaged or foreign SQLite file is a plain DatabaseError.
    return getattr(error.orig, "sqlite_errorname", "").startswith(_DAMAGED)


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # not finite somewhere: rare, so only then is everything walked
        return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Damaged()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
