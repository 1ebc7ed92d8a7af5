"""Engines by URL. SQLite: WAL, one engine that reads and one whose every transaction is BEGIN IMMEDIATE.

Two engines make a SELECT-then-UPDATE in a deferred transaction ("database is locked") impossible to write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from app.errors import StorageUnavailable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(sa.TypeDecorator[datetime]):
    """An aware UTC datetime stored as integer microseconds since 1970."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else EPOCH + timedelta(microseconds=value)


@dataclass(frozen=True)
class Database:
    """Where jobs live. `reading()` sees one snapshot; `writing()` is one write transaction."""

    read_engine: sa.Engine
    write_engine: sa.Engine

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with _named_errors(), self.read_engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        with _named_errors(), self.write_engine.begin() as connection:
            yield connection

    def dispose(self) -> None:
        self.read_engine.dispose()
        self.write_engine.dispose()


def connect(url: str, *, busy_timeout_s: float = 5.0) -> Database:
    """Open the database behind a URL; nothing is created but an empty SQLite file on first use."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        return Database(
            _sqlite_engine(parsed, busy_timeout_s, "BEGIN"),
            _sqlite_engine(parsed, busy_timeout_s, "BEGIN IMMEDIATE"),
        )
    engine = sa.create_engine(parsed, pool_pre_ping=True, json_serializer=_to_json)
    return Database(engine, engine)


def _sqlite_engine(url: sa.URL, busy_timeout_s: float, begin: str) -> sa.Engine:
    engine = sa.create_engine(url, json_serializer=_to_json)

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

    @event.listens_for(engine, "begin")
    def start(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as error:
        raise StorageUnavailable(
            f"The database did not answer: {str(error.orig).splitlines()[0]}.",
            "Nothing was changed. Try again; if it stays, look for another program that holds the database.",
        ) from error


def _to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
