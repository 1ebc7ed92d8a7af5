"""Datasets over HTTP: what one holds, and whether it leaks."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.api.datasets import Audit, Description
from app.datasets.errors import PreflightTimeout
from app.main import create_app
from app.migrate import upgrade
from app.settings import Settings
from tests.app.api.service import Service
from tests.app.datasets.make import table, write
from tests.app.datasets.market import LEAKS, market, table_of
from tests.factories import write_dataset


def root_of(api: Service) -> Path:
    return api.services.settings.data_root


def test_a_dataset_is_described(api: Service) -> None:
    write(root_of(api), "set/a.parquet", table(200))
    answer = api.client.get("/datasets/set", params={"window": 5, "horizon_s": 2})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["path"], body["rows"], body["horizon_s"]) == ("set", 200, 2.0)
    assert body["splits"]["train"]["dropped"]["purged"] == 2
    assert body["feature_values"]["num_elements"] == 2
    assert body["errors"] == []


def test_a_file_in_a_folder_is_described_too(api: Service) -> None:
    write(root_of(api), "set/a.parquet", table(200))
    assert api.client.get("/datasets/set/a.parquet", params={"window": 5}).json()["rows"] == 200


@pytest.mark.parametrize(
    ("path", "query", "status", "code"),
    [
        ("nothing", {}, 404, "dataset_not_found"),
        ("%2e%2e/etc", {}, 422, "path_outside_data_root"),
        ("set", {"label": "y"}, 422, "schema_mismatch"),
        ("set", {"lable": "y"}, 422, "invalid_request"),
        ("set", {"group": "label", "label": "label"}, 422, "invalid_request"),
    ],
    ids=["missing", "outside", "no label", "unknown query", "twice"],
)
def test_what_cannot_be_described_is_said(
    api: Service, path: str, query: dict[str, str], status: int, code: str
) -> None:
    write(root_of(api), "set/a.parquet", table(200))
    answer = api.client.get(f"/datasets/{path}", params=query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert str(root_of(api)) not in answer.text


def test_values_that_are_not_finite_do_not_break_the_answer(api: Service) -> None:
    write(root_of(api), "a.parquet", table(200, a=np.full(200, np.nan, np.float32)))
    body = api.client.get("/datasets/a.parquet", params={"window": 5}).json()
    assert [error["code"] for error in body["errors"]] == ["non_finite"]
    assert body["feature_values"]["non_finite"] == 200


def test_an_audit_takes_the_data_of_a_job(api: Service) -> None:
    spoil, code = LEAKS["the label as a feature"]
    write(root_of(api), "a.parquet", table_of(spoil(market(1000))))
    answer = api.client.post("/datasets/audit", json={"data": {"path": "a.parquet"}})
    assert answer.status_code == 200
    assert [finding["code"] for finding in answer.json()["findings"]] == [code]
    assert answer.json()["rows_read"] == 1000


def test_an_audit_of_a_bad_request_lists_its_problems(api: Service) -> None:
    answer = api.client.post("/datasets/audit", json={"data": {"path": "a", "windo": 3}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/data/windo"
    answer = api.client.post("/datasets/audit", json={"data": {"path": "../x"}})
    assert answer.json()["code"] == "path_outside_data_root"


def test_data_too_large_for_an_answer_in_time_are_refused_with_a_remedy(api: Service) -> None:
    write(root_of(api), "a.parquet", table(200))
    with patch("app.datasets.audit.audit.plan_split", side_effect=PreflightTimeout):
        answer = api.client.post("/datasets/audit", json={"data": {"path": "a.parquet"}})
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_too_slow")
    assert "saimp data audit" in answer.json()["hint"]


@pytest.mark.parametrize("path", ["demo", "d*", "**"])
def test_past_the_time_limit_a_job_is_accepted_and_says_so(tmp_path: Path, path: str) -> None:
    settings = Settings(data_root=tmp_path / "data", logs_root=tmp_path / "logs", preflight_s=1e-9)
    write_dataset(settings.data_root / "demo")
    app = create_app(settings)
    upgrade(app.state.services.database)
    body = {"data": {"path": path}}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for asked, status in (("/jobs", 201), ("/jobs?dry_run=true", 200)):
            answer = client.post(asked, json=body)
            assert answer.status_code == status
            assert [warning["code"] for warning in answer.json()["warnings"]] == ["preflight_partial"]
        assert client.post("/datasets/audit", json=body).json()["code"] == "dataset_too_slow"
        assert client.get(f"/datasets/{path}").json()["code"] == "dataset_too_slow"
        listed = client.get("/datasets").json()
        assert [warning["code"] for warning in listed["warnings"]] == ["listing_partial"]


def test_a_path_without_end_is_refused_by_name(api: Service) -> None:
    for path in ("*/" * 500, "a/" * 500):
        for asked in ("/jobs", "/jobs?dry_run=true", "/datasets/audit"):
            answer = api.client.post(asked, json={"data": {"path": path}})
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "no_files")
        assert api.client.get(f"/datasets/{path}").json()["code"] == "dataset_not_found"


def test_answers_are_what_the_reference_says(api: Service) -> None:
    write(root_of(api), "a.parquet", table(200))
    Description.model_validate(api.client.get("/datasets/a.parquet", params={"window": 5}).json())
    Audit.model_validate(api.client.post("/datasets/audit", json={"data": {"path": "a.parquet"}}).json())
