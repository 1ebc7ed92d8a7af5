from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from app.api import problems, schemas
from app.jobs.queue import Facts
from app.main import create_app
from app.settings import Settings
from tests.app.api.service import Service
from tests.factories import OWNER, SLOT


def test_liveness_needs_nothing(tmp_path: Path) -> None:
    client = TestClient(
        create_app(Settings(data_root=tmp_path / "data", logs_root=tmp_path / "logs")),
        base_url="http://127.0.0.1",
    )
    assert client.get("/healthz").json() == {"status": "ok"}


def missing(api: Service) -> str | None:
    """Ask for readiness; name what is missing."""
    answer = api.client.get("/readyz")
    if answer.status_code == 200:
        return None
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "retry-after" in answer.headers
    return str(answer.json()["errors"][0]["code"])


def test_readiness_needs_schema_and_a_living_worker(api: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(api) == "no_worker"
    api.queue.greet(OWNER, SLOT, {})
    assert missing(api) is None
    later = api.queue.now() + timedelta(minutes=1)
    monkeypatch.setattr(api.queue, "now", lambda: later)
    assert missing(api) == "no_worker"
    with api.services.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
    assert missing(api) == "wrong_schema"


def test_a_database_that_does_not_answer_is_a_503_that_tells_nothing(api: Service) -> None:
    with api.services.database.writing() as connection:
        connection.execute(sa.text("ALTER TABLE job RENAME TO elsewhere"))
    answer = api.client.get("/jobs")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
    assert int(answer.headers["retry-after"]) > 0
    assert "elsewhere" not in answer.text
    assert "no such table" not in answer.text


def test_a_full_disk_is_a_507_and_what_is_there_can_be_read(api: Service) -> None:
    job_id = api.job()
    with api.services.database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    for _ in range(1000):
        answer = api.client.post("/jobs", json={"data": {"path": "demo"}})
        if answer.status_code != 201:
            break
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert "Free space" in answer.json()["hint"]
    assert api.client.get(f"/jobs/{job_id}").status_code == 200
    assert api.client.get("/jobs").status_code == 200


def test_a_database_that_was_replaced_is_a_503_until_it_is_back(api: Service) -> None:
    job_id = api.job()
    path = api.services.database.file
    assert path is not None
    path.rename(path.with_name("aside.db"))
    answer = api.client.post("/jobs", json={"data": {"path": "demo"}})
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_damaged")
    path.with_name("aside.db").replace(path)
    assert api.client.get(f"/jobs/{job_id}").status_code == 200


def test_a_fault_of_ours_is_a_problem_without_its_insides(
    api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(api.queue, "workers", broken)
    client = TestClient(api.client.app, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.get("/workers")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/docs/assets/nothing.js", 404, "not_found"),
        ("GET", "/docs/assets/..%2f__init__.py", 404, "not_found"),
        ("DELETE", "/jobs", 405, "method_not_allowed"),
        ("PUT", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_wrong_addresses_and_methods_are_problems(
    api: Service, method: str, path: str, status: int, code: str
) -> None:
    answer = api.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_refused_method_learns_all_the_address_knows(api: Service) -> None:
    assert api.client.delete("/jobs").headers["allow"] == "GET, HEAD, POST"
    assert api.client.delete(f"/jobs/{api.job()}/checkpoint").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/healthz", "/jobs", "/datasets", "/docs", "/openapi.json", "/queue"])
def test_head_is_answered_where_get_is(api: Service, path: str) -> None:
    head, whole = api.client.head(path), api.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers} == {**whole.headers}


def test_datasets_are_listed_without_what_is_ours(api: Service) -> None:
    api.saved(b"weights")
    body = api.client.get("/datasets").json()
    schemas.DatasetPage.model_validate(body)
    assert [(entry["path"], entry["kind"], entry["files"]) for entry in body["data"]] == [
        ("demo", "folder", 1)
    ]


def test_the_service_document_leads_to_living_addresses(api: Service) -> None:
    for link in api.client.get("/").json()["links"].values():
        assert api.client.get(link).status_code in (200, 503)


def test_the_reference_needs_no_network(api: Service) -> None:
    page = api.client.get("/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) == 3
    for address in addresses:
        assert address.startswith("/docs/assets/")
        assert api.client.get(address).status_code == 200
    assert not re.search(r"https?://", page)


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_has_a_stable_name_and_names_its_problems(api: Service) -> None:
    found = operations(api.client.get("/openapi.json").json())
    assert {name: operation["operationId"] for name, operation in found.items()} == {
        "GET /": "read_service",
        "GET /champions": "list_champions",
        "GET /champions/{key}/checkpoint": "download_champion_checkpoint",
        "GET /datasets": "list_datasets",
        "GET /datasets/{path}": "read_dataset",
        "POST /datasets/audit": "audit_dataset",
        "GET /healthz": "read_health",
        "GET /jobs": "list_jobs",
        "GET /jobs/{job_id}": "read_job",
        "GET /jobs/{job_id}/artifacts": "list_artifacts",
        "GET /jobs/{job_id}/artifacts/{name}": "read_artifact",
        "GET /jobs/{job_id}/checkpoint": "download_checkpoint",
        "GET /jobs/{job_id}/events": "list_events",
        "GET /jobs/{job_id}/logs": "read_log",
        "GET /jobs/{job_id}/metrics": "read_metrics",
        "GET /jobs/{job_id}/plot": "read_plot",
        "GET /metrics": "read_service_metrics",
        "GET /queue": "read_queue",
        "GET /readyz": "read_readiness",
        "GET /version": "read_version",
        "GET /workers": "list_workers",
        "POST /jobs": "submit_job",
        "POST /jobs/{job_id}/cancel": "cancel_job",
        "POST /jobs/{job_id}/pause": "pause_job",
        "POST /jobs/{job_id}/promote": "promote_job",
        "DELETE /jobs/{job_id}/promote": "end_promotion",
        "POST /jobs/{job_id}/resume": "resume_job",
        "POST /jobs/{job_id}/retry": "retry_job",
        "POST /jobs/{job_id}/clone": "clone_job",
        "POST /jobs/{job_id}/move": "move_job",
        "PATCH /jobs/{job_id}": "edit_job",
        "DELETE /jobs/{job_id}": "delete_job",
        "POST /queue/drain": "drain_queue",
        "POST /queue/open": "open_queue",
    }
    for name, operation in found.items():
        assert operation["summary"], name
        assert operation["description"], name
        for status, answer in operation["responses"].items():
            if status[0] in "45":
                assert list(answer["content"]) == ["application/problem+json"], name
        assert {"4XX", "5XX"} <= set(operation["responses"]), name


def test_every_reference_in_the_document_resolves(api: Service) -> None:
    answer = api.client.get("/openapi.json")
    known = answer.json()["components"]["schemas"]
    for name in re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', answer.text):
        assert name in known


def test_the_examples_are_valid_jobs(api: Service) -> None:
    found = operations(api.client.get("/openapi.json").json())
    body = found["POST /jobs"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/JobRequest"}
    for example in body["examples"].values():
        answer = api.client.post("/jobs?dry_run=true", json=example["value"])
        codes = {error["code"] for error in answer.json().get("errors", [])}
        assert codes <= {"no_files"}, answer.text


def test_a_problem_has_what_its_schema_says(api: Service) -> None:
    body = api.client.post("/jobs", json={}).json()
    assert set(body) == set(problems.SCHEMA["properties"])
    assert set(body["errors"][0]) == set(problems.SCHEMA["properties"]["errors"]["items"]["properties"])


def test_there_is_no_cors(api: Service) -> None:
    answer = api.client.get("/jobs", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["origin", "null", "fetch"],
)
def test_a_page_of_another_site_changes_nothing(api: Service, headers: dict[str, str]) -> None:
    job_id = api.job()
    answer = api.client.post(f"/jobs/{job_id}/cancel", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert api.queue.get(job_id).status == "queued"


def test_a_page_of_ours_may(api: Service) -> None:
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert api.client.post(f"/jobs/{api.job()}/cancel", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_page_whose_name_was_made_to_point_here_reads_nothing(api: Service, host: str) -> None:
    answer = api.client.get("/jobs", headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 421
    assert answer.json()["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_the_names_of_this_machine_are_answered(api: Service, host: str) -> None:
    assert api.client.get("/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.168.1.7:8000", 200),
        ("[fe80::1]:8000", 200),
        ("localhost", 200),
        ("api:8000", 200),
        ("Box.local", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8000", 421),
        ("local", 200),
        ("user@api", 421),
    ],
)
def test_on_a_network_it_answers_to_no_public_name(tmp_path: Path, host: str, status: int) -> None:
    app = create_app(Settings(data_root=tmp_path, logs_root=tmp_path, host="0.0.0.0"))
    answer = TestClient(app, base_url="http://127.0.0.1").get("/healthz", headers={"Host": host})
    assert answer.status_code == status


def test_prometheus_reads_what_there_is(api: Service) -> None:
    claim = api.claimed(name='"quoted"')
    progress = {"epoch": 2, "epochs": 4, "batch": 5, "batches": 10, "samples_per_s": float("nan")}
    api.queue.record(claim.job_id, claim.attempt, Facts(progress=progress))
    api.save(claim, b"weights")
    api.queue.greet(OWNER, SLOT, {})
    answer = api.client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) saimp_\w+ .+|saimp_\w+({\w+="[^"\\]*"})? [-+.e\d]+', line), line
    assert 'saimp_jobs{status="running"} 1' in lines
    assert 'saimp_jobs{status="failed"} 0' in lines
    assert "saimp_workers 1" in lines
    assert "saimp_queue_open 1" in lines
    assert f'saimp_job_progress_ratio{{job="{claim.job_id}"}} 0.375' in lines
    assert f'saimp_job_best_val_loss{{job="{claim.job_id}"}} 1' in lines
    assert "samples_per_second{" not in answer.text, "what is not known is left out"
