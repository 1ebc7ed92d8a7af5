"""A row that cannot be read: what can be is shown, with a warning, and it stands in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.jobs.queue import Facts, Reason
from app.jobs.states import Status
from tests.app.api.service import Service, epoch, service
from tests.factories import OWNER, SLOT

COLUMNS = ("tags", "metadata", "config", "resolved", "plan", "warnings", "owner", "test")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as api:
        yield api


def damage(api: Service, job_id: str, text: str = '{"a": ', columns: tuple[str, ...] = COLUMNS) -> None:
    with api.queue.database.writing() as connection:
        for name in columns:
            statement = sa.text(f"UPDATE job SET {name} = :text WHERE id = :id AND {name} IS NOT NULL")
            connection.execute(statement, {"text": text, "id": job_id})


def warned(job: dict) -> list[str]:  # type: ignore[type-arg]
    return [one["message"] for one in job["warnings"] if one["code"] == "row_damaged"]


@pytest.mark.parametrize("status", ["queued", "running", "failed"])
def test_a_damaged_row_is_listed_with_what_can_be_read_of_it(api: Service, status: str) -> None:
    bad = api.job(name="bad", priority=9)
    if status != "queued":
        claim = api.queue.claim(OWNER, SLOT)
        assert claim is not None
        api.queue.record(bad, claim.attempt, Facts(epochs=[epoch(1)], progress={"batches": 3, "epochs": 2}))
        api.queue.record(bad, claim.attempt, Facts(progress={"resolved": {}, "plan": {}, "test": {}}))
        if status == "failed":
            api.queue.finish(bad, claim.attempt, Reason("diverged", "Not finite."))
    good = api.job(name="good")
    damage(api, bad)
    with api.queue.database.writing() as connection:
        connection.execute(sa.text("UPDATE epoch_row SET confusion = '[[1'"))
        connection.execute(sa.text("UPDATE event SET data = '{' WHERE job_id = :id"), {"id": bad})
    jobs = {job["id"]: job for job in api.client.get("/jobs").json()["data"]}
    assert jobs[good]["config"]["data"]["path"] == "demo"
    assert warned(jobs[good]) == []
    found = jobs[bad]
    assert (found["name"], found["status"], found["tags"], found["config"]) == ("bad", status, [], {})
    assert "config" in warned(found)[0]
    for path in (
        f"/jobs/{bad}",
        f"/jobs/{bad}/events",
        f"/jobs/{bad}/metrics",
        "/queue",
        "/workers",
        "/metrics",
    ):
        assert api.client.get(path).status_code == 200, path
    assert api.client.get("/champions").status_code == 200
    assert api.client.get("/jobs", params={"tag": "x", "q": "y"}).status_code == 200
    assert api.client.post("/jobs?dry_run=true", json={"data": {"path": "demo"}}).status_code == 200


def test_a_damaged_row_can_be_cancelled_and_deleted_and_nothing_else(api: Service) -> None:
    bad = api.job()
    damage(api, bad)
    for verb in ("clone", "retry?from=start"):
        assert api.client.post(f"/jobs/{bad}/{verb}").status_code == 409, verb
    assert api.client.patch(f"/jobs/{bad}", json={"name": "n"}).status_code == 409
    assert api.client.post(f"/jobs/{bad}/cancel").status_code == 200
    other = api.job()
    api.queue.cancel(other)
    assert api.client.delete(f"/jobs/{other}").status_code == 204, "beside a damaged one"
    assert api.client.delete(f"/jobs/{bad}").status_code == 204


@pytest.mark.parametrize("text", ["{}", "[]", "5", '"x"', '{"data": 1, "confusion": 3, "splits": 1}'])
def test_a_row_of_another_shape_breaks_no_list(api: Service, text: str) -> None:
    claim = api.claimed()
    api.queue.record(
        claim.job_id, claim.attempt, Facts(epochs=[epoch(1)], progress={"batches": 3, "epochs": 2})
    )
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"samples_per_s": 3.0}))
    waits = api.job()
    for job_id in (claim.job_id, waits):
        damage(api, job_id, text, ("config", "plan", "resolved", "test"))
    good = api.job()
    jobs = {job["id"]: job for job in api.client.get("/jobs").json()["data"]}
    assert set(jobs) == {claim.job_id, waits, good}
    assert jobs[claim.job_id]["status"] == Status.RUNNING
    for path in (f"/jobs/{waits}", f"/jobs/{claim.job_id}", "/queue", "/metrics"):
        assert api.client.get(path).status_code == 200, path
