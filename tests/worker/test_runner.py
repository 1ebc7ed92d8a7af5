"""What a runner tells its supervisor, how often, and what it says of memory."""

from __future__ import annotations

import pytest

from worker import runner
from worker.engine.events import Event, PhaseChanged, Tick, Warned, decode
from worker.runner import MEMORY_EVERY_S, TICK_EVERY_S, Outbox, _Memory
from worker.telemetry import Ram


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ticks_are_few_and_everything_else_is_sent() -> None:
    heard: list[Event] = []
    clock = Clock()
    outbox = Outbox(lambda message: heard.append(decode(message)), clock)
    warned = Warned("code", "message")
    for _ in range(100):
        outbox.put(Tick())
        outbox.put(warned)
    assert heard.count(Tick()) == 1
    assert heard.count(warned) == 100
    clock.now = TICK_EVERY_S
    outbox.put(Tick())
    outbox.put(Tick())
    outbox.put(PhaseChanged("validating"))
    assert heard[-2:] == [Tick(), PhaseChanged("validating")]


def test_rows_of_the_same_moment_say_the_same_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    readings = iter([Ram(1, 10), Ram(2, 10)])
    monkeypatch.setattr(runner, "ram", lambda: next(readings))
    memory = _Memory("cpu", clock)
    assert [memory()["ram_used"] for _ in range(3)] == [1, 1, 1]
    clock.now = MEMORY_EVERY_S
    assert [memory()["ram_used"] for _ in range(3)] == [2, 2, 2]
