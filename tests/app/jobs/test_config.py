from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.jobs.config import LABELS, FractionSplit, JobRequest, TimeSplit, canonical, config_hash


def parsed(**sections: Any) -> JobRequest:
    return JobRequest.model_validate_json(json.dumps({"data": {"path": "demo"}, **sections}))


def test_only_the_path_is_required() -> None:
    request = parsed()
    assert (request.model.name, request.optimizer.name, request.loss.name) == (
        "vivit",
        "adamw",
        "cross_entropy",
    )
    assert request.training.samples_per_step == 15
    with pytest.raises(ValidationError):
        JobRequest.model_validate_json("{}")


def test_the_stored_config_reads_back_to_itself() -> None:
    request = parsed(
        not_before="2026-01-01T01:00:00+01:00",
        data={"path": "x", "split": {"val_from": "2026-01-01T00:00:00Z"}},
    )
    stored = canonical(request.model_dump(mode="json"))
    assert JobRequest.model_validate_json(stored) == request


@pytest.mark.parametrize(
    ("split", "kind"),
    [
        ({}, FractionSplit),
        ({"train": 0.5, "val": 0.5}, FractionSplit),
        ({"train": 0.7, "val": 0.2, "test": 0.1}, FractionSplit),
        ({"val_from": "2026-01-01T00:00:00Z"}, TimeSplit),
    ],
)
def test_a_split_is_fractions_or_times(split: dict[str, Any], kind: type) -> None:
    assert isinstance(parsed(data={"path": "demo", "split": split}).data.split, kind)


@pytest.mark.parametrize(
    "split",
    [
        {"train": 1.0, "val": 0.0},
        {"train": 0.8, "val": 0.1},
        {"train": 0.8, "val": 0.2, "val_from": "2026-01-01T00:00:00Z"},
        {"val_from": "2026-01-02T00:00:00Z", "test_from": "2026-01-01T00:00:00Z"},
        {"val_from": "2026-01-01T00:00:00"},
        {"test_from": "2026-01-01T00:00:00Z"},
    ],
)
def test_an_impossible_split_is_refused(split: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(data={"path": "demo", "split": split})


@pytest.mark.parametrize(
    ("training", "samples", "nominal"),
    [
        ({}, 15, 3),
        ({"batch_size": 4, "accumulation_steps": 2}, 8, 4),
        ({"batch_size": 4, "effective_batch": 15}, 15, 4),
        ({"batch_size": "auto"}, 15, 15),
        ({"batch_size": "auto", "effective_batch": 32}, 32, 32),
    ],
)
def test_a_step_has_the_samples_of_the_effective_batch(
    training: dict[str, Any], samples: int, nominal: int
) -> None:
    found = parsed(training=training).training
    assert (found.samples_per_step, found.nominal_batch) == (samples, nominal)


def test_early_stopping_null_is_off() -> None:
    assert parsed(early_stopping=None).early_stopping.patience is None
    assert parsed().early_stopping.patience == 3


def test_labels_do_not_change_what_is_computed() -> None:
    labels = {
        "name": "x",
        "tags": ["a"],
        "metadata": {"a": "b"},
        "priority": 5,
        "depends_on": ["01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        "not_before": "2026-01-01T00:00:00Z",
        "max_attempts": 9,
    }
    assert set(labels) == set(LABELS)
    assert config_hash(parsed(**labels)) == config_hash(parsed())


def test_what_is_computed_changes_the_hash() -> None:
    hashes = {
        config_hash(parsed(**sections))
        for sections in ({}, {"training": {"seed": 1}}, {"model": {"name": "mlp"}}, {"precision": "fp32"})
    }
    assert len(hashes) == 4


def test_columns_play_one_role_each() -> None:
    with pytest.raises(ValidationError, match="named twice"):
        parsed(data={"path": "demo", "features": ["a", "label"]})


@given(st.floats(), st.sampled_from(["lr", "weight_decay", "eps"]))
def test_a_number_outside_its_range_never_passes(value: float, field: str) -> None:
    try:
        found = parsed(optimizer={field: value}).optimizer
    except (ValidationError, ValueError):
        return
    assert 0 <= getattr(found, field) <= 1
