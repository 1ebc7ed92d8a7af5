"""The commands on what becomes of a job and of the queue, against the real application."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import Result

from app.jobs.queue import Reason
from tests.app.cli import call
from tests.app.live import Live


@pytest.fixture(autouse=True)
def _open(live: Live) -> Iterator[None]:
    yield
    live.queue.open()


def saimp(live: Live, *arguments: str) -> Result:
    return call.saimp(*arguments, url=live.url)


def as_json(live: Live, *arguments: str) -> dict[str, Any]:
    result = saimp(live, *arguments, "-o", "json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def ended(live: Live) -> str:
    job_id = live.job(data={"path": "demo", "window": 4})
    live.queue.cancel(job_id)
    return job_id


def test_pause_and_resume(live: Live) -> None:
    job_id = live.job()
    assert as_json(live, "pause", job_id)["status"] == "paused"
    assert as_json(live, "resume", job_id)["status"] == "queued"


def test_retry_and_clone_print_the_new_id(live: Live) -> None:
    job_id = ended(live)
    again = saimp(live, "retry", job_id, "--from-start")
    assert live.queue.get(again.stdout.strip()).parent_id == job_id
    cloned = saimp(live, "clone", job_id, "--set", "training.epochs=2")
    assert live.queue.get(cloned.stdout.strip()).config["training"]["epochs"] == 2


def test_a_retry_of_a_success_names_the_ways_on(live: Live) -> None:
    taken = live.claimed()
    job_id = taken.job_id
    live.queue.finish(job_id, taken.attempt, Reason("completed"))
    result = saimp(live, "retry", job_id)
    assert result.exit_code != 0
    assert "--from-start" in result.output
    assert saimp(live, "retry", job_id, "--from-start").exit_code == 0


def test_promote_says_who_reigns(live: Live) -> None:
    job_id = live.saved(b"weights")
    (folder,) = live.paths.job(job_id).glob("attempts/*")
    (best,) = folder.glob("best-*.pth")
    best.with_suffix(".json").write_text("{}")
    result = saimp(live, "promote", job_id)
    assert result.exit_code == 0, result.output
    assert "is the champion with val loss 1.0000, pinned" in result.output
    assert saimp(live, "promote", ended(live)).exit_code == 3
    live.queue.cancel(job_id)


def test_move_needs_one_neighbour(live: Live) -> None:
    first, second = live.job(priority=7), live.job(priority=7)
    assert as_json(live, "move", second, "--before", first)["id"] == second
    line = [row.id for row in live.queue.line()]
    assert line.index(second) == line.index(first) - 1
    assert saimp(live, "move", second).exit_code == 2


def test_rm_deletes_what_has_ended(live: Live) -> None:
    job_id = ended(live)
    assert saimp(live, "rm", job_id).exit_code == 0
    waiting = live.job()
    refused = saimp(live, "rm", waiting)
    assert refused.exit_code != 0
    assert live.queue.get(waiting).status == "queued"


def test_drain_and_open(live: Live) -> None:
    assert as_json(live, "drain")["drained_at"] is not None
    assert live.queue.drained_at() is not None
    assert as_json(live, "open")["drained_at"] is None
