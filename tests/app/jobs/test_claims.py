"""Sixteen processes on one queue, the short form of bench/queue_soak.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.db import Database
from app.jobs.queue import running
from tests.factories import make_database
from tests.postgres.server import url_of

ROOT = Path(__file__).resolve().parents[3]


def test_sixteen_processes_claim_each_job_once(database: Database) -> None:
    database.dispose()
    done = subprocess.run(
        [sys.executable, "bench/queue_soak.py", "--url", url_of(database), "--jobs", "300"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = json.loads(done.stdout or "{}")
    assert result.get("is_sound"), done.stdout + done.stderr
    assert (result["jobs"], result["double_claims"], result["errors"]) == (300, 0, {})


def test_a_claim_looks_at_no_more_jobs_than_it_must(tmp_path: Path) -> None:
    """The queue may be long: the next job is found by the index, whatever stands behind it."""
    database = make_database(tmp_path)
    executed: list[tuple[str, Any]] = []

    @sa.event.listens_for(database.read_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        executed.append((statement, values))

    with database.reading() as connection:
        connection.execute(running._DUE, {"now": datetime.now(UTC), "not_on": ["cuda:1"]})
        statement, values = executed[-1]
        found = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    plan = [row.detail for row in found]
    assert any("candidate USING INDEX ix_job_claim (status=?)" in step for step in plan), plan
    assert [step for step in plan if step.startswith("SCAN")] == ["SCAN gate"]  # one row
    database.dispose()
