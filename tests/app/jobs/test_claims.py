"""Sixteen processes on one queue, the short form of bench/queue_soak.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from app.db import Database
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
