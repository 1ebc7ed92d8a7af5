"""Sixteen processes on one queue, the short form of bench/queue_soak.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

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
    with database.reading() as connection:
        due = running._DUE.params(now=datetime.now(UTC))
        written = due.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        found = connection.execute(sa.text(f"EXPLAIN QUERY PLAN {written}")).all()
    plan = [row.detail for row in found]
    assert any("candidate USING INDEX ix_job_claim (status=?)" in step for step in plan), plan
    assert [step for step in plan if step.startswith("SCAN")] == ["SCAN gate"]  # one row
    database.dispose()
