from __future__ import annotations

import json
import threading
import time
from datetime import timedelta

import pyarrow as pa
import pytest
import sqlalchemy as sa

from app.api import schemas
from app.jobs.config import MlpConfig
from app.jobs.queue import Facts, Reason
from app.jobs.scores import scores
from tests.app.api.service import Service, epoch
from tests.app.datasets.make import table, write
from tests.factories import OWNER, SLOT
from worker.models.build import build_model, flops_per_sample

DEMO = {"data": {"path": "demo"}}
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def test_a_job_with_only_a_path_is_queued(api: Service) -> None:
    answer = api.client.post("/jobs", json=DEMO)
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == job["links"]["self"] == f"/jobs/{job['id']}"
    assert (job["status"], job["reason"]["code"], job["queue"]["position"]) == ("queued", "none", 1)
    assert job["config"]["training"]["epochs"] == 15
    assert len(job["data_fingerprint"]) == 64
    assert job["created_at"].endswith("Z")
    assert api.client.get(answer.headers["location"]).json() == job


def test_a_repeated_key_returns_the_first_job(api: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    first = api.client.post("/jobs", json=DEMO, headers=headers)
    again = api.client.post("/jobs", json=DEMO, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotent-replay"] == "true"
    assert "idempotent-replay" not in first.headers
    assert first.json()["id"] == again.json()["id"]


def test_a_key_with_another_body_is_refused(api: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    api.client.post("/jobs", json=DEMO, headers=headers)
    answer = api.client.post("/jobs", json={**DEMO, "name": "other"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "key_reuse")


def test_a_key_works_after_its_data_are_gone(api: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    first = api.client.post("/jobs", json=DEMO, headers=headers).json()
    for file in (api.services.settings.data_root / "demo").iterdir():
        file.unlink()
    assert api.client.post("/jobs", json=DEMO, headers=headers).json()["id"] == first["id"]


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_a_key_of_a_wrong_length_is_refused(api: Service, key: str) -> None:
    answer = api.client.post("/jobs", json=DEMO, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].lower() == "/header/idempotency-key"


def test_a_dry_run_plans_and_queues_nothing(api: Service) -> None:
    answer = api.client.post("/jobs?dry_run=true", json=DEMO)
    plan = schemas.Plan.model_validate_json(answer.content)
    assert answer.status_code == 200
    assert plan.splits is not None
    train = plan.splits["train"]
    assert train is not None
    assert plan.training.effective_batch == 15
    assert plan.training.steps_per_epoch == -(-train.windows // 15)
    assert plan.classes == ["Neutro", "Stop", "Long", "SuperLong"]
    assert api.queue.page() == ([], False)


def test_submit_and_dry_run_warn_of_what_validation_cannot_show(api: Service) -> None:
    rows = table(100, label=pa.array([1, 2, 3] * 26 + [1, 2] + [2] * 20))
    write(api.services.settings.data_root, "one.parquet", rows)
    body = {"data": {"path": "one.parquet", "window": 4}}
    wanted = ["single_class_validation", "class_missing_from_validation", "labels_start_at_one"]
    for answer in (
        api.client.post("/jobs?dry_run=true", json=body),
        api.client.post("/jobs?dry_run=true", json=body),  # of a plan that is kept
        api.client.post("/jobs", json=body),
    ):
        found = {warning["code"]: warning["message"] for warning in answer.json()["warnings"]}
        assert [code for code in found if code in wanted] == wanted
        assert "1 (Stop), 3 (SuperLong), validation has none" in found["class_missing_from_validation"]


def test_a_dry_run_knows_the_size_of_the_model(api: Service) -> None:
    config = MlpConfig(d_model=8, hidden=8)
    body = {**DEMO, "model": config.model_dump()}
    plan = api.client.post("/jobs?dry_run=true", json=body).json()
    model = build_model(config, window=32, shape=(4,), num_classes=4)
    # Weights, gradients and two moments at the least, as float32.
    assert plan["training"]["memory_bytes"] > 4 * 4 * plan["model"]["parameters"]
    assert plan["training"]["seconds_per_epoch"] is None
    assert plan["model"] == {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_sample": flops_per_sample(config, window=32, shape=(4,), num_classes=4),
    }


def test_a_dry_run_needs_no_idempotency(api: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    api.client.post("/jobs?dry_run=true", json=DEMO, headers=headers)
    assert api.client.post("/jobs", json=DEMO, headers=headers).status_code == 201


def test_a_misspelt_dry_run_queues_nothing(api: Service) -> None:
    assert api.client.post("/jobs?dryrun=true", json=DEMO).status_code == 422
    assert api.queue.page() == ([], False)


def test_null_switches_early_stopping_off(api: Service) -> None:
    job = api.client.post("/jobs", json={**DEMO, "early_stopping": None}).json()
    assert job["config"]["early_stopping"]["patience"] is None


@pytest.mark.parametrize("job_id", [UNKNOWN, UNKNOWN.lower(), "x", "a" * 5000, "%00", "..%2f..%2fetc"])
@pytest.mark.parametrize("below", ["", "/metrics", "/events", "/logs", "/plot", "/checkpoint"])
def test_every_id_that_is_no_job_gets_the_same_answer(api: Service, job_id: str, below: str) -> None:
    answer = api.client.get(f"/jobs/{job_id}{below}")
    if "%2f" not in job_id:
        assert answer.json() == api.client.get(f"/jobs/{UNKNOWN}").json()
    assert answer.status_code == 404


def test_pages_walk_through_all_jobs(api: Service) -> None:
    ids = [api.job(name=f"job {number}") for number in range(5)]
    seen: list[str] = []
    after: str | None = None
    while True:
        page = api.client.get("/jobs", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [job["id"] for job in page["data"]]
        after = page["next_after"]
        assert page["has_more"] == (after is not None)
        if after is None:
            break
    assert seen == ids[::-1]
    assert [job["id"] for job in api.client.get("/jobs?order=oldest").json()["data"]] == ids


def test_jobs_are_found_by_status_tag_and_name(api: Service) -> None:
    claim = api.claimed(name="First", tags=["a"])
    second = api.job(name="second", tags=["a", "b"])

    def ids(query: str) -> list[str]:
        return [job["id"] for job in api.client.get(f"/jobs?{query}").json()["data"]]

    assert ids("status=running") == [claim.job_id]
    assert ids("status=running,queued") == ids("status=running&status=queued") == [second, claim.job_id]
    assert ids("tag=b") == [second]
    assert ids("q=FIRST") == [claim.job_id]
    assert ids(f"q={second}") == [second]
    assert ids("q=%25") == []


_STATUSES = '"queued" or "running" or "paused" or "succeeded" or "cancelled" or "failed"'


@pytest.mark.parametrize(
    ("query", "code", "message", "hint"),
    [
        ("limit=-1", "out_of_range", "must be an integer from 1 to 200", "The default is 50."),
        ("limit=1000000000", "out_of_range", "must be an integer from 1 to 200", "The default is 50."),
        ("limit=x", "wrong_type", "must be an integer from 1 to 200", "The default is 50."),
        ("limit=", "wrong_type", "must be an integer from 1 to 200", "The default is 50."),
        (
            "after=abc",
            "invalid_value",
            "must be a job's id (26 letters and digits)",
            "The `next_after` of the page before.",
        ),
        ("order=up", "not_allowed", 'must be "newest" or "oldest"', 'The default is "newest".'),
        ("status=done,gone", "not_allowed", f"must list only {_STATUSES}", "Statuses, separated by commas."),
        ("lmit=1", "unknown_parameter", "is no parameter of this address", "Did you mean 'limit'?"),
        ("q=", "out_of_range", "must be a text of 1 to 120 characters", "Part of the name"),
        ("q=%1b", "invalid_value", "must be printable characters", None),
    ],
)
def test_bad_parameters_are_named(
    api: Service, query: str, code: str, message: str, hint: str | None
) -> None:
    answer = api.client.get(f"/jobs?{query}")
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == (f"/query/{query.partition('=')[0]}", code)
    assert error["message"].startswith(message)
    assert error["hint"] is hint is None or error["hint"].startswith(hint)


def test_all_bad_parameters_come_at_once(api: Service) -> None:
    errors = api.client.get("/jobs?limit=0&order=up&tga=x").json()["errors"]
    assert {error["pointer"] for error in errors} == {"/query/limit", "/query/order", "/query/tga"}


def test_headers_and_paths_are_told_their_bounds_too(api: Service) -> None:
    answer = api.client.post("/jobs", json={"data": {"path": "demo"}}, headers={"Idempotency-Key": "k" * 256})
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["message"]) == (
        "/header/idempotency-key",
        "must be a text of 1 to 255 characters",
    )
    (error,) = api.client.get(f"/datasets/{'d' * 2000}").json()["errors"]
    assert (error["pointer"], error["message"]) == ("/path/path", "must be a text of 1 to 1024 characters")


def test_parameters_that_exclude_each_other_are_one_sentence(api: Service) -> None:
    (error,) = api.client.get(f"/jobs/{api.job()}/logs?tail=1&offset=0").json()["errors"]
    assert (error["pointer"], error["message"]) == ("/query", "tail goes with neither offset nor q")


def test_a_queued_job_says_what_it_waits_for(api: Service) -> None:
    first = api.job()
    second = api.job(depends_on=[first], priority=5)
    third = api.job(not_before="2100-01-01T00:00:00Z")
    jobs = {job["id"]: job for job in api.client.get("/jobs").json()["data"]}
    assert jobs[first]["reason"]["code"] == "none"
    assert jobs[second]["reason"]["code"] == "waiting_for_dependency"
    assert first in jobs[second]["reason"]["message"]
    assert jobs[third]["reason"]["code"] == "not_before"
    assert [jobs[job_id]["queue"]["position"] for job_id in (second, first, third)] == [1, 2, 3]


def test_a_job_that_was_put_back_says_why(api: Service) -> None:
    claim = api.claimed()
    api.queue.release(claim.job_id, claim.attempt, Reason("preempted", "The worker stops."))
    assert api.client.get(f"/jobs/{claim.job_id}").json()["reason"]["code"] == "preempted"
    for _ in range(2):
        again = api.queue.claim(OWNER, SLOT)
        assert again is not None
        api.queue.crash(claim.job_id, again.attempt, Reason("internal", "It died."))
    reason = api.client.get(f"/jobs/{claim.job_id}").json()["reason"]
    assert (reason["code"], reason["message"]) == ("backoff", "It died.")


def test_a_running_job_shows_progress_and_best(api: Service) -> None:
    claim = api.claimed()
    progress = {
        "epoch": 2,
        "epochs": 4,
        "batch": 5,
        "batches": 10,
        "samples_per_s": 30.0,
        "phase": "training",
    }
    api.queue.record(claim.job_id, claim.attempt, Facts(progress=progress))
    api.save(claim, b"weights")
    job = api.client.get(f"/jobs/{claim.job_id}").json()
    assert job["progress"] == {
        "epoch": 2,
        "epochs": 4,
        "batch": 5,
        "batches": 10,
        "percent": 37.5,
        "samples_per_s": 30.0,
        "eta_s": 2.5,
    }
    best = job["best"]
    assert (best["epoch"], best["val_loss"], best["val_accuracy"]) == (1, 1.0, 0.5)
    assert best["macro_f1"] is best["baseline_macro_f1"] is None  # no row of that epoch says more
    assert (job["phase"], job["attempt"], job["queue"]["position"]) == ("training", 1, None)


def test_the_time_left_counts_what_an_epoch_takes_besides_training(api: Service) -> None:
    claim = api.claimed()
    progress = {"epoch": 2, "epochs": 4, "batch": 0, "batches": 10, "samples_per_s": 30.0}
    # 10 batches of 3 at 100 samples a second: 0.3 of its 2 s were training.
    api.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch(1)], progress=progress))
    job = api.client.get(f"/jobs/{claim.job_id}").json()
    assert job["progress"]["eta_s"] == pytest.approx(3 * (10 * 3 / 30.0 + 1.7))


def test_a_list_reads_no_matrix(api: Service) -> None:
    claim, confusion = api.claimed(), [[3, 1, 0], [2, 4, 0], [0, 5, 9]]
    api.save(claim, b"weights")
    api.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch(1, confusion)]))
    asked: list[str] = []

    def note(_c: object, _cursor: object, text: str, *_more: object) -> None:
        asked.append(text)

    sa.event.listen(api.services.database.read_engine, "before_cursor_execute", note)
    for url in ("/jobs", f"/jobs/{claim.job_id}", "/champions"):
        assert api.client.get(url).status_code == 200
    assert asked
    assert not [text for text in asked if "confusion" in text]
    best, found = api.client.get(f"/jobs/{claim.job_id}").json()["best"], scores(confusion)
    assert (best["macro_f1"], best["mcc"]) == (found["macro_f1"], found["mcc"])


def test_every_answer_is_as_the_reference_says(api: Service) -> None:
    api.job(name="waits")
    claim = api.claimed(priority=1)
    test = {"loss": 1.0, "accuracy": 0.5, "confusion": [[1, 0], [1, 0]]}
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"test": test}))
    api.save(claim, b"weights")
    api.queue.greet(OWNER, SLOT, {"ram_total": 1})
    schemas.JobPage.model_validate_json(api.client.get("/jobs").content)
    schemas.Job.model_validate_json(api.client.get(f"/jobs/{claim.job_id}").content)
    schemas.EventPage.model_validate_json(api.client.get(f"/jobs/{claim.job_id}/events").content)
    schemas.Line.model_validate_json(api.client.get("/queue").content)
    schemas.WorkerPage.model_validate_json(api.client.get("/workers").content)
    schemas.Service.model_validate_json(api.client.get("/").content)
    schemas.Version.model_validate_json(api.client.get("/version").content)


def test_an_etag_spares_the_second_answer(api: Service) -> None:
    job_id = api.job()
    etag = api.client.get(f"/jobs/{job_id}").headers["etag"]
    same = api.client.get(f"/jobs/{job_id}", headers={"If-None-Match": f'"x", W/{etag}'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    api.queue.cancel(job_id)
    assert api.client.get(f"/jobs/{job_id}", headers={"If-None-Match": etag}).status_code == 200


def test_a_long_poll_answers_when_the_status_changes(api: Service) -> None:
    job_id = api.job()
    timer = threading.Timer(0.4, api.queue.cancel, [job_id])
    timer.start()
    began = time.monotonic()
    job = api.client.get(f"/jobs/{job_id}?wait=20").json()
    timer.join()
    assert job["status"] == "cancelled"
    assert 0.3 < time.monotonic() - began < 5


def test_a_long_poll_does_not_miss_a_change_before_it(api: Service) -> None:
    job_id = api.job()
    etag = api.client.get(f"/jobs/{job_id}").headers["etag"]
    api.queue.claim(OWNER, SLOT)
    began = time.monotonic()
    answer = api.client.get(f"/jobs/{job_id}?wait=20", headers={"If-None-Match": etag})
    assert answer.json()["status"] == "running"
    assert time.monotonic() - began < 5


def test_a_long_poll_ends_with_its_time(api: Service) -> None:
    job_id = api.job()
    etag = api.client.get(f"/jobs/{job_id}").headers["etag"]
    assert api.client.get(f"/jobs/{job_id}?wait=0.3", headers={"If-None-Match": etag}).status_code == 304


def test_a_long_poll_on_an_ended_job_answers_at_once(api: Service) -> None:
    job_id = api.job()
    api.queue.cancel(job_id)
    began = time.monotonic()
    api.client.get(f"/jobs/{job_id}?wait=20")
    assert time.monotonic() - began < 5


def test_cancelling_a_waiting_job_is_done_at_once(api: Service) -> None:
    job_id = api.job()
    first = api.client.post(f"/jobs/{job_id}/cancel")
    again = api.client.post(f"/jobs/{job_id}/cancel")
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["status"] == "cancelled"
    assert first.json() == again.json()


def test_cancelling_a_running_job_is_left_to_the_worker(api: Service) -> None:
    claim = api.claimed()
    assert [api.client.post(f"/jobs/{claim.job_id}/cancel").status_code for _ in range(2)] == [202, 202]
    job = api.client.get(f"/jobs/{claim.job_id}").json()
    assert (job["status"], job["reason"]["code"]) == ("running", "none")
    api.queue.finish(claim.job_id, claim.attempt, Reason("user"))
    assert api.client.post(f"/jobs/{claim.job_id}/cancel").status_code == 200


def test_cancelling_an_ended_job_is_illegal(api: Service) -> None:
    claim = api.claimed()
    api.queue.finish(claim.job_id, claim.attempt, Reason("completed"))
    answer = api.client.post(f"/jobs/{claim.job_id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "illegal_transition")


def test_events_go_on_behind_a_number(api: Service) -> None:
    claim = api.claimed()
    home = f"/jobs/{claim.job_id}/events"
    page = api.client.get(f"{home}?limit=1").json()
    assert ([event["kind"] for event in page["data"]], page["has_more"]) == (["submitted"], True)
    rest = api.client.get(f"{home}?after={page['next_after']}").json()
    assert ([event["kind"] for event in rest["data"]], rest["has_more"]) == (["claimed"], False)
    assert api.client.get(f"{home}?after={rest['next_after']}").json()["data"] == []
    assert api.client.get(f"{home}?after={2**63}").status_code == 422


def test_workers_and_the_queue_are_shown(api: Service) -> None:
    claim = api.claimed()
    waiting = api.job(name="next")
    api.queue.greet(OWNER, SLOT, {"ram_total": 1})
    (worker,) = api.client.get("/workers").json()["data"]
    assert (worker["slot"], worker["job_id"], worker["is_alive"]) == (SLOT, claim.job_id, True)
    (place,) = api.client.get("/queue").json()["data"]
    assert (place["id"], place["position"], place["reason"]["code"]) == (waiting, 1, "none")


def test_the_next_job_may_start_when_the_running_one_ends(api: Service) -> None:
    claim = api.claimed()
    progress = {"epoch": 1, "epochs": 2, "batch": 0, "batches": 10, "samples_per_s": 3.0}
    api.queue.record(claim.job_id, claim.attempt, Facts(progress=progress))
    waiting = api.job()
    before = api.queue.now()
    start = schemas.Job.model_validate_json(api.client.get(f"/jobs/{waiting}").content).queue.eta_start
    assert start is not None
    assert timedelta(seconds=19) < start - before < timedelta(seconds=25)


def test_what_is_not_finite_is_null(api: Service) -> None:
    claim = api.claimed()
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"samples_per_s": float("inf")}))
    text = api.client.get(f"/jobs/{claim.job_id}").text
    assert json.loads(text, parse_constant=pytest.fail)["progress"]["samples_per_s"] is None


def test_a_full_queue_says_so(api: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.queue.submitting.MAX_QUEUED", 1)
    headers = {"Idempotency-Key": "one"}
    assert api.client.post("/jobs", json=DEMO, headers=headers).status_code == 201
    answer = api.client.post("/jobs", json=DEMO)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"] == "60"
    assert api.client.post("/jobs", json=DEMO, headers=headers).status_code == 200


@pytest.mark.parametrize(("has_8bit", "codes"), [(False, {"package_missing"}), (True, set())])
def test_a_package_no_worker_has_is_said_at_submit(api: Service, has_8bit: bool, codes: set[str]) -> None:
    api.queue.greet(OWNER, SLOT, {"gpu": None, "has_8bit": has_8bit})
    body = {"data": {"path": "demo", "horizon_s": 1.0}, "optimizer": {"name": "adamw_8bit"}}
    job = api.client.post("/jobs", json=body).json()
    assert {warning["code"] for warning in job["warnings"]} == codes


@pytest.mark.parametrize(("gpu", "codes"), [(None, {"gpu_missing"}), ("H200", set())])
def test_a_gpu_no_worker_has_is_said_at_submit(api: Service, gpu: str | None, codes: set[str]) -> None:
    api.queue.greet(OWNER, SLOT, {"gpu": gpu})
    body = {"data": {"path": "demo", "horizon_s": 1.0}, "device": "cuda"}
    job = api.client.post("/jobs", json=body).json()
    assert {warning["code"] for warning in job["warnings"]} == codes
