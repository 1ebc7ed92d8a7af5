"""A job on data in a bucket, submitted over the API, through the real worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.jobs.states import Status
from app.main import create_app
from app.settings import Settings
from tests.acceptance.site import QUICK, Site, ended, log_of, open_queue, worker
from tests.buckets import CREDENTIALS, Line, make_bucket, serving, upload
from tests.factories import write_dataset
from worker.models.load import load


@dataclass(frozen=True)
class Shop:
    """A service with a worker, and a bucket it may read."""

    site: Site
    client: TestClient
    url: str  # of the bucket's prefix, for the operator
    line: Line
    url_by_line: str  # of another bucket, behind the line

    def put(self, name: str, url: str | None = None) -> str:
        """Upload the dataset `demo` under a name; returns its data.path."""
        prefix, _, query = (url or self.url).partition("?")
        upload(self.site.root / "data" / "demo", f"{prefix}/{name}?{query}")
        return f"{prefix}/{name}"

    def submit(self, path: str, **sections: Any) -> Any:
        body = {**QUICK, **sections, "data": {**QUICK["data"], "path": path}}
        return self.client.post("/jobs", json=body)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch, serving() as endpoint:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        line, url = Line(endpoint), make_bucket(endpoint)
        behind = make_bucket(endpoint).replace(endpoint, line.endpoint)
        roots = f"{url}, {behind}"
        settings = Settings(data_root=root / "data", logs_root=root / "logs", s3_roots=roots)
        with open_queue(root) as queue:
            client = TestClient(create_app(settings), base_url="http://127.0.0.1")
            with client, worker(root, SAIMP_S3_ROOTS=roots) as process:
                yield Shop(Site(root, queue, process), client, url, line, behind)


def test_a_job_from_a_bucket_ends_with_the_weights_of_the_local_one(shop: Shop) -> None:
    path = shop.put("demo")
    entries = shop.client.get("/datasets").json()
    assert {"demo", path} <= {entry["path"] for entry in entries["data"]}
    assert entries["warnings"] == []
    described = shop.client.get(f"/datasets/{path}", params={"window": 4}).json()
    assert described["fingerprint"] == shop.client.get("/datasets/demo").json()["fingerprint"]
    rows = [ended(shop.site.queue, shop.submit(where).json()["id"]) for where in (path, "demo")]
    assert [row.status for row in rows] == [Status.SUCCEEDED] * 2, rows[0].reason_message
    assert rows[0].plan["splits"] == rows[1].plan["splits"]
    assert rows[0].data_fingerprint == rows[1].data_fingerprint
    models = [load(shop.site.root / "data" / "jobs" / row.id / "saimp_best.pth")[0] for row in rows]
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        assert (ours == theirs).all()


def test_an_object_that_changes_between_submit_and_start_ends_the_job(shop: Shop) -> None:
    path = shop.put("moving")
    shop.client.post("/queue/drain")
    job_id = shop.submit(path).json()["id"]
    write_dataset(shop.site.root / "data" / "demo", rows=399)
    shop.put("moving")
    shop.client.post("/queue/open")
    row = ended(shop.site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "data_changed")


def test_a_bucket_that_is_not_allowed_is_refused(shop: Shop) -> None:
    for path in (f"{shop.put('demo')}/../../other", "s3://another/desk"):
        answer = shop.submit(path)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == "path_outside_data_root"


def test_a_bucket_that_falls_silent_costs_attempts_not_the_job_at_once(shop: Shop) -> None:
    """What a job cannot help is tried again as after a crash, and named in the end."""
    path = shop.put("away", shop.url_by_line)
    shop.client.post("/queue/drain")
    job_id = shop.submit(path, max_attempts=2).json()["id"]
    shop.line.cut()
    refused = shop.submit(path)
    assert (refused.status_code, refused.json()["code"]) == (503, "source_unavailable")
    listed = shop.client.get("/datasets").json()
    assert [warning["code"] for warning in listed["warnings"]] == ["source_unavailable"]
    shop.client.post("/queue/open")
    row = ended(shop.site.queue, job_id)
    assert (row.status, row.reason_code, row.attempt) == (Status.FAILED, "storage_error", 2)
    assert "cannot be listed: NETWORK_CONNECTION" in row.reason_message
    assert "[END] failed (storage_error)" in log_of(shop.site.root, row)
