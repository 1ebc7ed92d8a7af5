from __future__ import annotations

import hashlib
from typing import Any

import pytest

from app.jobs import later
from app.jobs.comparison import comparison_key
from app.jobs.config import LABELS, canonical, config_hash, memory_key
from app.jobs.queue.submitting import request_hash
from tests.factories import make_request

# As if these had come with this version.
CAME_LATER = {
    "data.stride": 1,
    "training.log_every": 10,
    "limits": {},
    "limits.max_runtime_s": None,  # came later still
    "model.mlp.hidden": 128,
    "loss.cross_entropy.label_smoothing": 0.0,
}


def as_before(**sections: Any) -> Any:
    return later.counted(make_request(**sections).model_dump(mode="json"), CAME_LATER)


def test_a_field_as_it_was_before_is_not_there() -> None:
    body: Any = make_request(model={"name": "mlp"}).model_dump(mode="json")
    del body["data"]["stride"], body["training"]["log_every"], body["limits"]
    del body["model"]["hidden"], body["loss"]["label_smoothing"]
    assert as_before(model={"name": "mlp"}) == body


def test_a_field_of_another_value_counts() -> None:
    body = as_before(model={"name": "mlp", "hidden": 5}, data={"path": "demo", "stride": 2})
    assert (body["model"]["hidden"], body["data"]["stride"]) == (5, 2)
    assert as_before(limits={"max_runtime_s": 5.0})["limits"] == {"max_runtime_s": 5.0}


def test_a_field_of_one_model_is_not_that_of_another() -> None:
    body = as_before(model={"name": "lstm", "hidden": 128}, metadata={"name": "mlp", "hidden": "128"})
    assert body["model"]["hidden"] == 128
    assert body["metadata"] == {"name": "mlp", "hidden": "128"}


def test_an_upgrade_changes_the_name_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(model={"name": "mlp"})
    settled: Any = {"fingerprint": "f", "cuts_ns": (5, None), "horizon_s": 1.0, "label_end": None}
    settled["class_weights"] = None
    before = as_before(model={"name": "mlp"})
    monkeypatch.setattr(later, "BODY", CAME_LATER)
    labels = {name: before.pop(name) for name in LABELS}
    assert config_hash(request) == sha256(before)
    assert request_hash(request, None) == sha256([{**labels, **before}, None])
    assert memory_key(request.model_dump(mode="json")) == memory_key(before)
    with_default = comparison_key(request, **settled)
    monkeypatch.setattr(later, "BODY", {})
    assert comparison_key(request, **settled) != with_default


def sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@pytest.mark.parametrize("is_recomputing", [False, True])
def test_what_was_settled_before_there_were_rungs_is_completed(is_recomputing: bool) -> None:
    body = make_request(training={"activation_checkpointing": is_recomputing}).model_dump(mode="json")
    assert later.resolved({"threads": 3}, body) == {
        "threads": 3,
        "share_rows": True,
        "activation_checkpointing": is_recomputing,
        "lays_out_keys": True,
    }


def test_what_was_settled_on_a_rung_stays() -> None:
    stored = {"share_rows": False, "activation_checkpointing": True}
    assert later.resolved(stored, make_request().model_dump(mode="json")) == {
        **stored,
        "lays_out_keys": False,
    }
