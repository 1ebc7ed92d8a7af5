"""What a runner tells its supervisor, how often, and what it says of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.datasets.places import Sources
from tests.factories import make_request
from worker import runner
from worker.assignment import Assignment
from worker.engine.events import Event, PhaseChanged, Tick, Warned, decode
from worker.report.plot import Plot
from worker.runner import MEMORY_EVERY_S, TICK_EVERY_S, Outbox, _Memory, _Sinks
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


@pytest.mark.parametrize(
    ("fault", "code", "why"),
    [
        (OSError(28, "No space left"), "storage_error", "No space left"),
        (KeyError("start"), "internal", "KeyError"),
    ],
    ids=["disk", "ours"],
)
def test_a_picture_that_fails_is_a_warning_once_and_ends_nothing(
    fault: Exception, code: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Plot, "write", fail)
    sinks = _Sinks(
        Assignment(
            job_id="JOB",
            attempt=1,
            config=make_request().model_dump(mode="json"),
            resolved=None,
            data_fingerprint=None,
            sources=Sources(tmp_path, ()),
            plans=tmp_path,
            directory=tmp_path,
            log=tmp_path / "log.txt",
            plot=tmp_path / "plot.png",
            stream_budget=1,
            vram_fraction=1.0,
        )
    )
    (warned,) = sinks.write(PhaseChanged("training"))
    assert warned.code == code
    assert f"The plot of the run cannot be written: {why}" in warned.message
    assert list(sinks.write(PhaseChanged("saving"))) == []
