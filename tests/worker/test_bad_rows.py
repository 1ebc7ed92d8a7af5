"""One job that the supervisor cannot handle: its own recorded ending, or a line; never the service's end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.errors import IllegalTransition
from app.jobs.queue import Queue
from app.jobs.states import Status
from app.settings import Settings
from tests.factories import make_request
from tests.worker.fakes import Bench, make_bench
from worker.attempt import Attempt
from worker.engine.events import Ended
from worker.supervisor import Supervisor, unwritable

DONE = Ended("completed", "Trained.")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def damage(queue: Queue, job_id: str, **columns: str) -> None:
    """Write a text into JSON columns of a job as it is."""
    with queue.database.writing() as connection:
        for name, text in columns.items():
            connection.execute(
                sa.text(f"UPDATE job SET {name} = :text WHERE id = :id"), {"text": text, "id": job_id}
            )


def another(bench: Bench) -> str:
    """Start the next job, to see that the service goes on."""
    job_id = bench.queue.submit(make_request())[0].id
    for _ in range(3):
        if bench.supervisor.attempt is None:
            bench.supervisor.turn()
    assert bench.attempt.claim.job_id == job_id
    return str(job_id)


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


@pytest.mark.parametrize(
    "text", ['{"data": ', "null", "5", "[]", '{"data": {"path": "demo"}, "model": {"name": "gone"}}']
)
def test_a_config_that_cannot_be_trained_by_ends_its_job(bench: Bench, text: str) -> None:
    bad = bench.queue.submit(make_request())[0].id
    damage(bench.queue, bad, config=text)
    bench.supervisor.turn()
    row = bench.row(bad)
    assert (row.status, row.reason_code) == (Status.FAILED, "config_invalid")
    another(bench)


def test_a_config_of_an_earlier_version_is_trained(bench: Bench) -> None:
    old = bench.queue.submit(make_request())[0]
    damage(
        bench.queue, old.id, config=json.dumps(without(old.config, "oom", "limits", "checkpoint", "device"))
    )
    bench.supervisor.turn()
    bench.says(bench.best(1, 1.0), DONE)
    bench.dies()
    assert bench.row(old.id).reason_code == "completed"


@pytest.mark.parametrize("column", ["resolved", "plan", "warnings", "tags", "owner", "test"])
def test_a_damaged_row_found_running_stops_no_start(tmp_path: Path, column: str) -> None:
    before = make_bench(tmp_path)
    bad = before.begin(max_attempts=1)
    damage(before.queue, bad, **{column: '{"a'})
    after = again(before)
    assert after.row(bad).status == Status.FAILED
    another(after)


def again(before: Bench) -> Bench:
    """Start the next supervisor on the same data root, the one before having died."""
    made: Any = before.spawner
    settings = Settings(data_root=before.root / "data", logs_root=before.root / "logs")
    supervisor = Supervisor(settings, before.queue, made, before.said.append, clock=lambda: before.time)
    supervisor.arrive()
    return Bench(before.root, before.queue, supervisor, before.spawner, before.said)


def test_what_cannot_be_put_back_is_set_aside_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_bench(tmp_path)
    bad = before.begin()

    def fails(*_arguments: Any, **_named: Any) -> Any:
        raise RecursionError("maximum recursion depth exceeded")

    with monkeypatch.context() as broken:
        broken.setattr(Queue, "crash", fails)
        after = again(before)
    row = after.row(bad)
    assert (row.status, row.reason_code) == (Status.FAILED, "internal")
    assert "maximum recursion depth exceeded" in row.reason_message
    another(after)


@pytest.mark.parametrize("where", ["attempts/.DS_Store", "attempts/1/.DS_Store", "attempts/1/folder/x"])
def test_a_stray_file_stops_no_start(tmp_path: Path, where: str) -> None:
    before = make_bench(tmp_path)
    job_id = before.begin()
    before.says(before.best(1, 1.0), DONE)
    before.dies()
    stray = before.paths.job(job_id) / where
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text("x")
    another(again(before))


def test_a_job_folder_that_is_none_stops_no_start(tmp_path: Path) -> None:
    before = make_bench(tmp_path)
    job_id = before.begin()
    before.says(before.best(1, 1.0), DONE)
    before.dies()
    folder = before.paths.job(job_id)
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("a file")
    after = again(before)
    assert [line for line in after.said if line.startswith(f"{job_id} could not be tidied up: ")]
    another(after)


def test_an_attempt_that_cannot_be_gone_on_with_is_a_crash(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin(max_attempts=1)

    def fails(self: Attempt) -> bool:
        raise ValueError("no such thing")

    with monkeypatch.context() as broken:
        broken.setattr(Attempt, "turn", fails)
        bench.supervisor.turn()
    row = bench.row(job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "crash_loop")
    assert "ValueError: no such thing" in row.reason_message
    another(bench)


def test_a_start_that_fails_of_itself_is_a_crash(bench: Bench) -> None:
    bench.spawner.error = TypeError("cannot pickle this")
    job_id = bench.begin(max_attempts=1)
    row = bench.row(job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "crash_loop")
    bench.spawner.error = None
    another(bench)


def test_a_paused_job_that_cannot_go_on_keeps_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin()
    bench.says(Ended("disk_full", "No room.", stopped="preempt"))
    bench.dies()
    assert bench.row(job_id).status == Status.PAUSED

    def fails(*_arguments: Any, **_named: Any) -> Any:
        raise IllegalTransition("It has just been cancelled.")

    monkeypatch.setattr(Queue, "resume", fails)
    bench.pass_time(6)
    assert [line for line in bench.said if line.startswith(f"{job_id} could not go on")]
    another(bench)


def test_places_that_cannot_be_written_are_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unwritable(bench.paths) == []
    bench.paths.logs_root.mkdir(exist_ok=True)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != bench.paths.logs_root)  # root may do all
    assert unwritable(bench.paths) == [bench.paths.logs_root]
