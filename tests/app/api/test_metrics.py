from __future__ import annotations

import base64
import threading
import time
from typing import Any

import pytest

from app.api import schemas
from app.jobs.queue import Claim, Facts, Reason
from tests.app.api.service import Service, batch, epoch, system
from tests.factories import OWNER, SLOT


def read(api: Service, job_id: str, **query: Any) -> dict[str, Any]:
    answer = api.client.get(f"/jobs/{job_id}/metrics", params=query)
    assert answer.status_code == 200, answer.text
    schemas.Metrics.model_validate_json(answer.content)
    body: dict[str, Any] = answer.json()
    return body


def measured(api: Service, claim: Claim, **facts: Any) -> None:
    api.queue.record(claim.job_id, claim.attempt, Facts(**facts))


def test_all_scopes_come_in_the_shape_of_the_contract(api: Service) -> None:
    claim = api.claimed()
    measured(api, claim, batches=[batch(1, 0), batch(1, 10)], systems=[system(0)], epochs=[epoch(1)])
    found = read(api, claim.job_id)
    assert (found["job_id"], found["status"], found["rewinds"]) == (claim.job_id, "running", [])
    assert found["batches"]["batch"] == [0, 10]
    assert found["batches"]["time"] == ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:10.000Z"]
    assert found["system"]["cpu_percent"] == [3.0]
    (one,) = found["epochs"]
    assert (one["epoch"], one["best"], one["macro_f1"], one["balanced_accuracy"]) == (1, True, 0.75, 0.75)
    assert set(one["per_class"]) == {"0", "1"}


def test_the_cursor_gives_each_row_once(api: Service) -> None:
    claim = api.claimed()
    cursor: dict[str, str] = {}
    seen = []
    for number in range(5):
        measured(api, claim, batches=[batch(1, number)], systems=[system(number)])
        found = read(api, claim.job_id, **cursor)
        cursor = {"after": found["next_after"]}
        seen += found["batches"]["batch"]
    assert seen == [0, 1, 2, 3, 4]
    assert read(api, claim.job_id, **cursor)["batches"]["batch"] == []


def test_a_scope_gives_only_its_rows_and_the_cursor_holds_for_all(api: Service) -> None:
    claim = api.claimed()
    measured(api, claim, batches=[batch(1, 0)], systems=[system(0)], epochs=[epoch(1)])
    found = read(api, claim.job_id, scope="epoch,batch")
    assert (len(found["epochs"]), found["batches"]["batch"], found["system"]["time"]) == (1, [0], [])
    assert read(api, claim.job_id, scope="system", after=found["next_after"])["system"]["time"] == []


def test_a_resumed_job_says_what_to_drop(api: Service) -> None:
    claim = api.claimed()
    measured(api, claim, batches=[batch(1, 0), batch(1, 10)])
    first = read(api, claim.job_id)
    api.queue.release(claim.job_id, claim.attempt, Reason("preempted"))
    again = api.queue.claim(OWNER, SLOT)
    assert again is not None
    api.queue.restart(again.job_id, again.attempt)
    measured(api, again, batches=[batch(1, 0, loss=2.0)])
    found = read(api, claim.job_id, after=first["next_after"])
    assert found["rewinds"] == [{"epoch": 1, "batch": 0}]
    assert found["batches"]["loss"] == [2.0]
    assert read(api, claim.job_id)["rewinds"] == []
    assert read(api, claim.job_id, after=found["next_after"])["rewinds"] == []


def test_a_long_poll_answers_with_the_next_row_of_its_scope(api: Service) -> None:
    claim = api.claimed()
    cursor = read(api, claim.job_id)["next_after"]
    timers = [
        threading.Timer(0.2, measured, [api, claim], {"systems": [system(0)]}),
        threading.Timer(0.7, measured, [api, claim], {"batches": [batch(1, 0)]}),
    ]
    for timer in timers:
        timer.start()
    began = time.monotonic()
    found = read(api, claim.job_id, after=cursor, scope="batch", wait=20)
    assert found["batches"]["batch"] == [0]
    assert 0.6 < time.monotonic() - began < 5
    for timer in timers:
        timer.join()


def test_a_long_poll_answers_when_the_job_ends(api: Service) -> None:
    claim = api.claimed()
    cursor = read(api, claim.job_id)["next_after"]
    timer = threading.Timer(0.3, api.queue.finish, [claim.job_id, claim.attempt, Reason("completed")])
    timer.start()
    began = time.monotonic()
    assert read(api, claim.job_id, after=cursor, wait=20)["status"] == "succeeded"
    assert time.monotonic() - began < 5
    timer.join()


def test_long_polls_leave_room_for_other_requests(api: Service) -> None:
    claim = api.claimed()
    cursor = read(api, claim.job_id)["next_after"]
    polls = [
        threading.Thread(target=read, args=(api, claim.job_id), kwargs={"after": cursor, "wait": 20})
        for _ in range(60)  # more than the thread pool holds
    ]
    for poll in polls:
        poll.start()
    for _ in range(20):
        assert api.client.get("/version").status_code == 200
    assert all(poll.is_alive() for poll in polls), "others are answered while they wait"
    api.queue.finish(claim.job_id, claim.attempt, Reason("completed"))
    for poll in polls:
        poll.join()


def forged(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize("cursor", ["", "abc", "%%%", "ä", "A" * 5000, forged("x.1"), forged("SELFSAME.-1")])
def test_a_cursor_that_is_not_ours_is_refused(api: Service, cursor: str) -> None:
    answer = api.client.get(f"/jobs/{api.job()}/metrics", params={"after": cursor})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_cursor")


def test_a_cursor_of_another_job_or_of_the_future_is_refused(api: Service) -> None:
    one, other = api.job(), api.job()
    cursor = read(api, one)["next_after"]
    for job_id, after in ((other, cursor), (one, forged(f"{one[-8:]}.ffff"))):
        answer = api.client.get(f"/jobs/{job_id}/metrics", params={"after": after})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_cursor")


@pytest.mark.parametrize(
    "query", ["scope=epochs", "max_points=1", "max_points=1000000", "wait=-1", "wait=1e9", "wait=nan", "x=1"]
)
def test_bad_parameters_are_refused(api: Service, query: str) -> None:
    assert api.client.get(f"/jobs/{api.job()}/metrics?{query}").status_code == 422
