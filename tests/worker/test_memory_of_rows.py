"""What metric rows say of memory."""

from __future__ import annotations

from unittest.mock import patch

from tests.worker.test_outbox import Clock
from worker import runner
from worker.runner import MEMORY_EVERY_S, _Memory
from worker.telemetry import Ram


def test_rows_of_the_same_moment_say_the_same() -> None:
    clock = Clock()
    readings = iter([Ram(1, 10), Ram(2, 10)])
    with patch.object(runner, "ram", lambda: next(readings)):
        memory = _Memory("cpu", clock)
        assert [memory()["ram_used"] for _ in range(3)] == [1, 1, 1]
        clock.now = MEMORY_EVERY_S
        assert [memory()["ram_used"] for _ in range(3)] == [2, 2, 2]
