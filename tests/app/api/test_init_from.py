"""Weights to start from: what does not fit is refused at submit, in the words of the job's body."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.jobs import sizes
from app.jobs.queue import Facts
from tests.app.api.service import Service
from tests.factories import write_dataset
from worker.describe import describe

MLP = {"name": "mlp", "d_model": 8, "hidden": 8}
LSTM = {"name": "lstm", "d_model": 8, "hidden": 8}


def body(model: dict[str, Any], path: str = "demo", **data: Any) -> dict[str, Any]:
    return {"data": {"path": path, "window": 4, **data}, "model": model}


@pytest.fixture
def wide(api: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service with a dataset of wider rows, and one of fewer classes; torch is there already."""
    monkeypatch.setattr(sizes, "_ask", lambda question: describe(json.loads(question)))
    write_dataset(api.services.settings.data_root / "wide", features=5)
    write_dataset(api.services.settings.data_root / "three", classes=3)
    return api


@pytest.mark.parametrize(
    ("parent", "child", "hint"),
    [
        (body(MLP), body({**MLP, "hidden": 16}), "model.hidden (16 here, 8 there)"),
        (body(MLP), body(MLP, window=8), "data.window (8 here, 4 there)"),
        (body(MLP), body(MLP, "wide"), "the features of a row ([5] here, [4] there)"),
        (body(MLP), body(MLP, "three"), "the number of classes (3 here, 4 there)"),
        (body(MLP), body(LSTM), 'model.name ("lstm" here, "mlp" there)'),
    ],
    ids=["model", "window", "features", "classes", "architecture"],
)
def test_weights_that_do_not_fit_are_refused(
    wide: Service, parent: dict[str, Any], child: dict[str, Any], hint: str
) -> None:
    source = wide.client.post("/jobs", json=parent).json()["id"]
    refused = wide.client.post("/jobs", json={**child, "init_from": source, "depends_on": [source]})
    assert refused.status_code == 422
    [problem] = refused.json()["errors"]
    assert (problem["pointer"], problem["code"]) == ("/init_from", "shape_mismatch")
    assert "here and" in problem["message"]
    assert hint in problem["hint"]


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        (body(MLP), body({**MLP, "dropout": 0.3}, normalize="standard")),
        (body(LSTM), body(LSTM, window=8)),
    ],
    ids=["same shapes", "a model for any window"],
)
def test_weights_that_fit_are_taken(wide: Service, parent: dict[str, Any], child: dict[str, Any]) -> None:
    source = wide.client.post("/jobs", json=parent).json()["id"]
    answer = wide.client.post("/jobs", json={**child, "init_from": source, "depends_on": [source]})
    assert answer.status_code == 201, answer.text


def test_weights_are_compared_with_those_of_a_job_that_has_begun(api: Service) -> None:
    claim = api.claimed(**body(MLP))
    resolved = {"shape": [6], "classes": ["a", "b", "c", "d"]}
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"resolved": resolved}))
    api.save(claim, b"weights")
    refused = api.client.post("/jobs", json={**body(MLP), "init_from": claim.job_id})
    assert [problem["code"] for problem in refused.json()["errors"]] == ["shape_mismatch"]
