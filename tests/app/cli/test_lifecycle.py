"""The commands on what becomes of a job and of the queue, against the real application."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import Result

from app.jobs.files import sidecar
from app.jobs.queue import Facts, Reason
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
    assert "is promoted to champion, with val loss 1.0000" in result.output
    assert as_json(live, "promote", job_id, "--end")["champion"] is False
    assert saimp(live, "promote", ended(live)).exit_code == 3
    claim = live.queue.get(job_id)
    live.queue.finish(job_id, claim.attempt, Reason("completed"))


def test_the_champion_is_named_found_and_dropped(live: Live) -> None:
    champions = [trained(live, loss_of_epoch) for loss_of_epoch in (1, 2)]
    rows = saimp(live, "ls").stdout.splitlines()
    assert ["champion" in line for line in rows if line.startswith(tuple(champions))] == [True, False]
    assert re.search("champion +of the jobs comparable with it", saimp(live, "show", "@best").stdout)
    assert as_json(live, "show", "@best:demo")["id"] == champions[1]
    unknown = saimp(live, "show", "@best:nowhere")
    assert unknown.exit_code == 3
    assert "no job of the dataset 'nowhere' has ended with a best" in unknown.stderr
    refused = saimp(live, "rm", champions[1])
    assert refused.exit_code != 0
    assert "--drop-champion" in refused.output
    assert saimp(live, "rm", champions[1], "--drop-champion").exit_code == 0
    assert as_json(live, "show", "@best")["id"] == champions[0]


def trained(live: Live, epoch: int) -> str:
    """Let a job end with the loss 1 / epoch."""
    claim = live.claimed(data={"path": "demo", "window": 4})
    sidecar(live.save(claim, b"weights", epoch)).write_text("{}")
    live.queue.record(claim.job_id, claim.attempt, Facts(progress={"comparison_key": "c" * 64}))
    live.queue.finish(claim.job_id, claim.attempt, Reason("completed"))
    return claim.job_id


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
