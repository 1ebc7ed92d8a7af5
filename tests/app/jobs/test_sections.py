"""The unions of a job's body: models, losses, optimizers, schedules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from app.jobs.config import JobRequest, canonical


def parsed(**sections: Any) -> JobRequest:
    return JobRequest.model_validate_json(json.dumps({"data": {"path": "demo"}, **sections}))


NAMES = {
    "model": ["vivit", "mlp", "transformer", "tcn", "lstm", "gru", "cnn_lstm"],
    "loss": ["cross_entropy", "focal", "ordinal"],
    "optimizer": ["adamw", "adamw_8bit", "sgd"],
    "schedule": ["constant", "linear", "cosine", "one_cycle", "plateau"],
}


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, names in NAMES.items() for n in names])
def test_a_name_is_enough_and_the_stored_config_reads_back(section: str, name: str) -> None:
    request = parsed(**{section: {"name": name}})
    assert getattr(request, section).name == name
    assert JobRequest.model_validate_json(canonical(request.model_dump(mode="json"))) == request
    assert JobRequest.model_validate(request.model_dump()) == request


@pytest.mark.parametrize(
    ("section", "fields", "name"),
    [
        ("loss", {"label_smoothing": 0.1}, "cross_entropy"),
        ("optimizer", {"lr": 0.1, "betas": [0.5, 0.6]}, "adamw"),
        ("schedule", {"warmup_steps": 3}, "constant"),
    ],
)
def test_a_section_without_a_name_is_one_of_the_defaults(
    section: str, fields: dict[str, Any], name: str
) -> None:
    assert getattr(parsed(**{section: fields}), section).name == name


@pytest.mark.parametrize(
    "sections",
    [
        {"loss": {"gamma": 2.0}},
        {"loss": {"name": "focal", "gamma": -1.0}},
        {"loss": {"name": "focal", "class_weights": [0.0, 0.0]}},
        {"loss": {"name": "ordinal", "cost": [[0.0, 1.0]]}},
        {"loss": {"name": "ordinal", "cost": [[0.0, 1.0], [1.0, 0.5]]}},
        {"loss": {"name": "ordinal", "cost": [[0, 1], [1, 0]], "class_weights": [1.0, 1.0, 1.0]}},
        {"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.0}},
        {"optimizer": {"betas": ["0.9", 0.9]}},
        {"optimizer": {"betas": [0.9]}},
        {"schedule": {"name": "plateau", "factor": 1.0}},
        {"schedule": {"name": "one_cycle", "pct_start": 0.0}},
        {"model": {"name": "transformer", "d_model": 10, "heads": 4}},
        {"model": {"name": "custom"}},
        {"model": {"name": "custom", "target": "os.system"}},
        {"model": {"name": "custom", "target": "a:b;c"}},
        {"model": {"name": "custom", "target": ".a:b"}},
        {"model": {"name": "custom", "target": "a:B", "params": {"not a name": 1}}},
    ],
    ids=json.dumps,
)
def test_what_makes_no_sense_is_refused(sections: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(**sections)


def test_a_custom_model_takes_any_json_but_numbers_that_are_none() -> None:
    params = {"depth": 3, "widths": [1, 2.5], "name": None, "deep": {"is_on": True}}
    model = parsed(model={"name": "custom", "target": "desk.nets:Net", "params": params}).model
    assert model.name == "custom"
    assert model.params == params
    body = '{"data": {"path": "x"}, "model": {"name": "custom", "target": "a:B", "params": {"x": NaN}}}'
    with pytest.raises(ValidationError):
        JobRequest.model_validate_json(body)
