"""What a runner tells its supervisor, and how often."""

from __future__ import annotations

from worker.engine.events import Event, PhaseChanged, Tick, Warned, decode
from worker.runner import TICK_EVERY_S, Outbox


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
