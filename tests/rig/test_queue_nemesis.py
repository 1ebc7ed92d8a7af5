"""The short form of `tests.rig.queue_nemesis`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres.server import IS_INSTALLED
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "engine",
    ["sqlite", pytest.param("postgres", marks=pytest.mark.skipif(not IS_INSTALLED, reason="not installed"))],
)
def test_kills_lose_nothing_double_nothing_and_leave_nothing_stuck(tmp_path: Path, engine: str) -> None:
    # A process of its own: it forks, and must have one thread.
    done = subprocess.run(
        [sys.executable, "-m", "tests.rig.queue_nemesis", "--kills", "60", "--seed", "1", "--url", engine],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["kills"] >= 60
