"""What becomes of a job, and of the queue, over HTTP."""

from __future__ import annotations

import shutil
from datetime import timedelta
from typing import Any

import pytest

from app.api import schemas
from app.jobs.queue import Claim, Facts, Reason
from tests.app.api.service import Service
from tests.factories import OWNER, SLOT, write_dataset

DEMO = {"data": {"path": "demo"}}
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
DONE = Reason("completed")
CHECKPOINT = {
    "epoch": 2,
    "batch": 4,
    "step": 9,
    "is_epoch_trained": False,
    "name": "attempts/1/resume.ckpt",
    "sha256": "0" * 64,
    "size": 1,
}


def submitted(api: Service, **body: Any) -> str:
    return str(api.client.post("/jobs", json={**DEMO, **body}).json()["id"])


def claimed(api: Service) -> Claim:
    taken = api.queue.claim(OWNER, SLOT)
    assert taken is not None
    return taken


def ended(api: Service, *checkpoints: dict[str, Any], **body: Any) -> str:
    submitted(api, **body)
    taken = claimed(api)
    api.queue.finish(taken.job_id, taken.attempt, Reason("diverged", "NaN"), Facts(checkpoints=checkpoints))
    return taken.job_id


def test_pause_and_resume_of_a_waiting_job_are_done_at_once(api: Service) -> None:
    job_id = submitted(api)
    for _ in range(2):
        answer = api.client.post(f"/jobs/{job_id}/pause")
        assert (answer.status_code, answer.json()["status"]) == (200, "paused")
        assert answer.json()["reason"]["code"] == "user"
        assert answer.json()["queue"] == {"position": None, "eta_start": None}
    for _ in range(2):
        answer = api.client.post(f"/jobs/{job_id}/resume")
        assert (answer.status_code, answer.json()["status"]) == (200, "queued")
        assert answer.json()["reason"]["code"] == "none"
    schemas.Job.model_validate_json(answer.content)


def test_pause_of_a_running_job_waits_for_its_worker(api: Service) -> None:
    taken = api.claimed()
    for _ in range(2):
        answer = api.client.post(f"/jobs/{taken.job_id}/pause")
        assert (answer.status_code, answer.json()["status"]) == (202, "running")
        assert "pause" in answer.json()["reason"]["message"]
    api.queue.suspend(taken.job_id, taken.attempt)
    assert api.client.post(f"/jobs/{taken.job_id}/pause").status_code == 200


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_job_that_has_ended_refuses(api: Service, verb: str) -> None:
    answer = api.client.post(f"/jobs/{ended(api)}/{verb}")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel", "retry", "clone", "move"])
def test_no_job_no_order(api: Service, verb: str) -> None:
    answer = api.client.post(f"/jobs/{UNKNOWN}/{verb}", json={"before": UNKNOWN})
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_retry_goes_on_with_the_same_config(api: Service) -> None:
    parent = ended(api, CHECKPOINT, name="first", training={"seed": 5})
    answer = api.client.post(f"/jobs/{parent}/retry")
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/jobs/{job['id']}")
    assert (job["parent_id"], job["name"], job["status"]) == (parent, "first", "queued")
    assert job["config"] == api.client.get(f"/jobs/{parent}").json()["config"]
    at = claimed(api).checkpoint
    assert at is not None
    assert (at.job_id, at.epoch) == (parent, 2)


def test_a_retry_from_the_start_forgets_the_checkpoint(api: Service) -> None:
    parent = ended(api, CHECKPOINT)
    assert api.client.post(f"/jobs/{parent}/retry?from=start").status_code == 201
    assert claimed(api).checkpoint is None
    assert api.client.post(f"/jobs/{parent}/retry?from=end").status_code == 422


def test_of_a_job_that_has_succeeded_nothing_is_left_to_retry(api: Service) -> None:
    parent = submitted(api)
    api.queue.finish(parent, claimed(api).attempt, DONE)
    shutil.rmtree(api.services.settings.data_root / "demo")
    refused = api.client.post(f"/jobs/{parent}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_to_retry")
    assert all(way in refused.json()["hint"] for way in ("/clone", "?from=start", "--from-start"))
    assert [row.id for row in api.queue.page()[0]] == [parent]
    write_dataset(api.services.settings.data_root / "demo")
    again = api.client.post(f"/jobs/{parent}/retry?from=start")
    assert (again.status_code, again.json()["parent_id"]) == (201, parent)
    assert "Clone" in api.client.post(f"/jobs/{parent}/resume").json()["hint"]


def test_a_retry_of_a_job_that_may_still_run_is_refused(api: Service) -> None:
    answer = api.client.post(f"/jobs/{submitted(api)}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_a_repeated_key_makes_one_retry(api: Service) -> None:
    parent = ended(api)
    headers = {"Idempotency-Key": "again"}
    first, again = (api.client.post(f"/jobs/{parent}/retry", headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = api.client.post("/jobs", json=DEMO, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "key_reuse")


@pytest.mark.parametrize("split", [0.8, [], "x", True, {"train": None, "val": []}])
def test_a_clone_with_what_is_no_split_is_refused(api: Service, split: object) -> None:
    answer = api.client.post(f"/jobs/{submitted(api)}/clone", json={"data": {"split": split}})
    assert answer.status_code == 422
    assert all(error["pointer"].startswith("/data/split") for error in answer.json()["errors"])


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1893456000", 1893456000, [], "soon"]
)
def test_an_edit_takes_no_other_times_than_a_submit(api: Service, time: object) -> None:
    job_id = submitted(api)
    answer = api.client.patch(f"/jobs/{job_id}", json={"not_before": time})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/not_before"]
    assert api.client.get(f"/jobs/{job_id}").json()["config"]["not_before"] is None


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_a_job_may_wait_from_the_first_year_to_the_last(api: Service, time: str) -> None:
    job_id = submitted(api, not_before=time)
    assert api.client.get(f"/jobs/{job_id}").json()["config"]["not_before"] == time
    assert api.client.get("/queue").status_code == 200
    assert api.client.get("/jobs").status_code == 200


def test_a_clone_patches_the_config(api: Service) -> None:
    parent = submitted(api, name="first", tags=["a"], training={"seed": 5, "epochs": 7})
    patch = {"name": None, "tags": ["b"], "training": {"epochs": 2}, "metadata": {"desk": "fx"}}
    answer = api.client.post(f"/jobs/{parent}/clone", json=patch)
    job = answer.json()
    assert answer.status_code == 201
    assert (job["parent_id"], job["name"], job["tags"]) == (parent, None, ["b"])
    assert (job["config"]["training"]["seed"], job["config"]["training"]["epochs"]) == (5, 2)
    assert job["metadata"] == {"desk": "fx"}


def test_a_clone_without_a_body_is_the_same_again(api: Service) -> None:
    parent = submitted(api, training={"seed": 5})
    job = api.client.post(f"/jobs/{parent}/clone").json()
    assert job["config"] == api.client.get(f"/jobs/{parent}").json()["config"]


@pytest.mark.parametrize(
    ("patch", "section", "expected"),
    [
        ({"model": {"name": "mlp"}}, "model", {"name": "mlp", "hidden": 128}),
        ({"model": {"dropout": 0.5}}, "model", {"name": "vivit", "d_model": 64, "dropout": 0.5}),
        ({"model": None}, "model", {"name": "vivit", "d_model": 128}),
    ],
    ids=str,
)
def test_another_kind_of_section_starts_from_its_defaults(
    api: Service, patch: dict[str, Any], section: str, expected: dict[str, Any]
) -> None:
    parent = submitted(api, model={"name": "vivit", "d_model": 64})
    made = api.client.post(f"/jobs/{parent}/clone", json=patch).json()["config"][section]
    assert {key: made[key] for key in expected} == expected


def test_a_clone_with_problems_lists_them_all(api: Service) -> None:
    parent = submitted(api)
    patch = {"training": {"epochs": 0}, "optimiser": {}, "data": {"window": -1}}
    answer = api.client.post(f"/jobs/{parent}/clone", json=patch)
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {
        "/training/epochs",
        "/optimiser",
        "/data/window",
    }
    assert api.client.post(f"/jobs/{parent}/clone", json=[1]).status_code == 422


def test_a_clone_forgets_dependencies_that_were_deleted(api: Service) -> None:
    first = submitted(api)
    taken = claimed(api)
    second = submitted(api, depends_on=[first])
    api.queue.finish(first, taken.attempt, DONE)
    assert api.client.delete(f"/jobs/{first}").status_code == 204
    answer = api.client.post(f"/jobs/{second}/clone")
    assert (answer.status_code, answer.json()["config"]["depends_on"]) == (201, [])


def test_labels_can_be_edited(api: Service) -> None:
    job_id = submitted(api, metadata={"a": "1", "b": "2"})
    patch = {
        "name": "new",
        "tags": ["x"],
        "priority": 7,
        "metadata": {"a": None, "c": "3"},
        "not_before": "2100-01-01T00:00:00Z",
    }
    answer = api.client.patch(f"/jobs/{job_id}", json=patch)
    job = answer.json()
    assert answer.status_code == 200
    assert (job["name"], job["tags"], job["priority"]) == ("new", ["x"], 7)
    assert job["metadata"] == job["config"]["metadata"] == {"b": "2", "c": "3"}
    assert job["reason"]["code"] == "not_before"
    assert api.client.patch(f"/jobs/{job_id}", json={"not_before": None}).json()["reason"]["code"] == "none"


@pytest.mark.parametrize(
    ("patch", "pointer", "code"),
    [
        ({"training": {"epochs": 1}}, "/training", "not_editable"),
        ({"status": "running"}, "/status", "unknown_field"),
        ({"priority": 5000}, "/priority", "out_of_range"),
        ({"priority": "1"}, "/priority", "wrong_type"),
        ({"tags": "a"}, "/tags", "wrong_type"),
        ({"name": "a\nb"}, "/name", "control_character"),
        ([], "", "wrong_type"),
    ],
    ids=str,
)
def test_other_edits_are_refused_and_change_nothing(
    api: Service, patch: Any, pointer: str, code: str
) -> None:
    job_id = submitted(api)
    before = api.client.get(f"/jobs/{job_id}").json()
    answer = api.client.patch(f"/jobs/{job_id}", json=patch)
    assert answer.status_code == 422
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]
    assert api.client.get(f"/jobs/{job_id}").json() == before


def test_an_edit_hints_only_at_what_it_takes(api: Service) -> None:
    job_id = submitted(api)
    patch = {"priorty": 1, "epochs": 3, "modle": {}, "label": "x"}
    errors = api.client.patch(f"/jobs/{job_id}", json=patch).json()["errors"]
    assert [(error["pointer"], error["hint"]) for error in errors] == [
        ("/priorty", "Did you mean 'priority'?"),
        *((f"/{key}", "Known here: metadata, name, not_before, priority, tags.") for key in list(patch)[1:]),
    ]
    answer = api.client.patch(f"/jobs/{job_id}", json={f"k{number}": 1 for number in range(5000)})
    assert len(answer.json()["errors"]) == 100


def test_the_priority_of_an_ended_job_is_settled(api: Service) -> None:
    job_id = ended(api)
    assert api.client.patch(f"/jobs/{job_id}", json={"priority": 1}).status_code == 409
    assert api.client.patch(f"/jobs/{job_id}", json={"name": "kept"}).status_code == 200


def test_the_queue_is_read_page_by_page(api: Service) -> None:
    ids = [submitted(api, priority=priority) for priority in (0, 5, 0, -3, 5)]
    turn = [ids[number] for number in (1, 4, 0, 2, 3)]
    whole = api.client.get("/queue?limit=5").json()
    assert ([job["id"] for job in whole["data"]], whole["has_more"], whole["next_after"]) == (
        turn,
        False,
        None,
    )
    seen, page = [], api.client.get("/queue?limit=2").json()
    schemas.Line.model_validate(page)
    while True:
        seen += [(job["id"], job["position"]) for job in page["data"]]
        if not page["has_more"]:
            break
        if len(seen) == 2:  # the last one seen may leave meanwhile
            api.queue.cancel(seen[-1][0])
        page = api.client.get("/queue", params={"limit": 2, "after": page["next_after"]}).json()
    assert [job_id for job_id, _ in seen] == turn
    assert [position for _, position in seen[2:]] == [2, 3, 4]
    assert api.client.get("/queue?after=soon").status_code == 422


def test_a_job_moves_before_and_after(api: Service) -> None:
    first, second, third = (submitted(api) for _ in range(3))

    def order() -> list[str]:
        return [job["id"] for job in api.client.get("/queue").json()["data"]]

    answer = api.client.post(f"/jobs/{third}/move", json={"before": first})
    assert (answer.status_code, answer.json()["queue"]["position"]) == (200, 1)
    assert order() == [third, first, second]
    api.client.post(f"/jobs/{third}/move", json={"after": first})
    assert order() == [first, third, second]


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({}, "", "missing"),
        ({"before": UNKNOWN, "after": UNKNOWN}, "", "missing"),
        ({"before": 1}, "/before", "wrong_type"),
        ({"under": UNKNOWN}, "/under", "unknown_field"),
        ({"before": UNKNOWN}, "/before", "job_not_found"),
        ([], "", "wrong_type"),
    ],
    ids=str,
)
def test_a_move_needs_one_neighbour(api: Service, body: Any, pointer: str, code: str) -> None:
    answer = api.client.post(f"/jobs/{submitted(api)}/move", json=body)
    assert answer.status_code == 422
    assert [(error["pointer"], error["code"]) for error in answer.json()["errors"]] == [(pointer, code)]


def test_a_move_beside_a_job_that_does_not_wait_is_refused(api: Service) -> None:
    running = api.claimed().job_id
    answer = api.client.post(f"/jobs/{submitted(api)}/move", json={"after": running})
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_a_deleted_job_is_gone_with_its_files(api: Service) -> None:
    taken = api.claimed()
    name = api.paths.create_log(api.queue.now())
    api.queue.record(taken.job_id, taken.attempt, Facts(progress={"log_name": name}))
    api.save(taken, b"weights")
    assert api.client.delete(f"/jobs/{taken.job_id}").status_code == 409
    api.queue.finish(taken.job_id, taken.attempt, DONE)
    answer = api.client.delete(f"/jobs/{taken.job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not api.paths.job(taken.job_id).exists()
    assert not api.paths.log(name).exists()
    for again in (api.client.delete, api.client.get):
        assert again(f"/jobs/{taken.job_id}").status_code == 404


def test_a_job_in_use_is_not_deleted(api: Service) -> None:
    parent = ended(api, CHECKPOINT)
    child = api.client.post(f"/jobs/{parent}/retry").json()["id"]
    answer = api.client.delete(f"/jobs/{parent}")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_in_use")
    api.client.post(f"/jobs/{child}/cancel")
    assert api.client.delete(f"/jobs/{parent}").status_code == 204


def test_a_drained_queue_says_so_until_it_is_opened(api: Service) -> None:
    taken = api.claimed()
    waiting = submitted(api)
    for _ in range(2):
        answer = api.client.post("/queue/drain")
        assert answer.status_code == 202
    line = schemas.Line.model_validate_json(answer.content)
    assert line.drained_at is not None
    assert [job.reason.code for job in line.data] == ["draining"]
    assert api.client.post("/queue/drain?running=finish").status_code == 200
    api.queue.release(taken.job_id, taken.attempt, Reason("preempted", "The worker stops."))
    assert api.client.get(f"/jobs/{taken.job_id}").json()["reason"]["code"] == "preempted"
    assert api.client.post("/queue/drain").status_code == 200
    for _ in range(2):
        answer = api.client.post("/queue/open")
        assert (answer.status_code, answer.json()["drained_at"]) == (200, None)
    assert api.client.get(f"/jobs/{waiting}").json()["reason"]["code"] == "none"


def test_starts_are_estimated_from_measured_speed(api: Service) -> None:
    taken = api.claimed()
    api.queue.greet(OWNER, SLOT, {})
    first, second = submitted(api, training={"epochs": 2}), submitted(api)
    late = submitted(api, not_before="2100-01-01T00:00:00Z")

    def starts() -> dict[str, Any]:
        line = schemas.Line.model_validate_json(api.client.get("/queue").content)
        return {job.id: job.eta_start for job in line.data}

    assert starts()[first] is None
    progress = {"epoch": 1, "epochs": 2, "batch": 0, "batches": 10, "samples_per_s": 3.0}
    api.queue.record(taken.job_id, taken.attempt, Facts(progress=progress))
    found = starts()
    now = api.queue.now()
    windows = api.queue.get(first).plan["splits"]["train"]["windows"]
    assert found[first] - now < timedelta(seconds=21)
    # Times are written to the millisecond.
    assert abs(found[second] - found[first] - timedelta(seconds=2 * windows / 3.0)) < timedelta(seconds=0.01)
    assert found[late].year == 2100
