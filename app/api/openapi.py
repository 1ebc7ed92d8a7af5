"""What the API reference says beyond the handlers' types: bodies, examples, files, problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api import problems, schemas
from app.jobs.config import JobRequest

_REF = "#/components/schemas/"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": f"{_REF}Problem"}}}

# On every operation.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served; the problem says why.", "content": _PROBLEM},
    "5XX": {"description": "The service cannot serve it now.", "content": _PROBLEM},
}

TAGS = [
    {"name": "jobs", "description": "Submit a training job, follow it, cancel it."},
    {"name": "metrics", "description": "What a job measures, and its history."},
    {"name": "logs", "description": "The text the training process wrote."},
    {"name": "files", "description": "Curves and checkpoint."},
    {"name": "datasets", "description": "What there is to train on."},
    {"name": "service", "description": "The service itself, its workers and its queue."},
]

EXAMPLES: dict[str, dict[str, Any]] = {
    "minimal": {"summary": "Everything by default", "value": {"data": {"path": "demo"}}},
    "small": {
        "summary": "A quick run of a small model on the CPU",
        "value": {
            "name": "quick-look",
            "data": {"path": "demo", "window": 16},
            "model": {"name": "mlp", "hidden": 64},
            "training": {"epochs": 2, "batch_size": 32, "accumulation_steps": 1},
            "device": "cpu",
        },
    },
    "full": {
        "summary": "Most knobs",
        "value": {
            "name": "btc-lob-4c",
            "tags": ["btc"],
            "metadata": {"desk": "fx"},
            "priority": 10,
            "data": {
                "path": "btc",
                "window": 32,
                "split": {"train": 0.7, "val": 0.15, "test": 0.15},
                "embargo_s": 60,
            },
            "model": {"name": "vivit", "d_model": 128, "heads": 4, "layers": 2, "dropout": 0.1},
            "loss": {"name": "cross_entropy", "class_weights": [1.0, 10.0, 10.0, 20.0]},
            "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 1e-5},
            "training": {"epochs": 15, "batch_size": 3, "accumulation_steps": 5, "seed": 7},
            "precision": "auto",
            "early_stopping": {"patience": 3, "min_delta": 0.0},
        },
    },
}

SUBMIT: dict[str, Any] = {
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"{_REF}JobRequest"}, "examples": EXAMPLES}},
        }
    },
    "responses": {
        200: {"model": schemas.Job | schemas.Plan, "description": "The first job of this key, or the plan"},
        201: {
            "description": "Queued",
            "headers": {"Location": {"description": "The job", "schema": {"type": "string"}}},
        },
    },
}
NOT_MODIFIED: dict[str, Any] = {"responses": {304: {"description": "Nothing has changed"}}}
ORDER: dict[str, Any] = {"responses": {202: {"model": schemas.Job, "description": "The worker must act"}}}

DRAIN: dict[str, Any] = {
    "responses": {202: {"model": schemas.Line, "description": "A running job must be put back"}}
}
COPY: dict[str, Any] = {
    "responses": {
        200: {"model": schemas.Job, "description": "The first job of this key"},
        201: SUBMIT["responses"][201],
    }
}
_ID = {"type": "string", "description": "A job's id"}


def _body(schema: dict[str, Any], example: dict[str, Any], media_type: str, *, is_required: bool) -> Any:
    content = {media_type: {"schema": {"type": "object", **schema}, "example": example}}
    return {"requestBody": {"required": is_required, "content": content}}


CLONE: dict[str, Any] = COPY | {
    "openapi_extra": _body(
        {"description": "A JSON merge patch of the config"},
        {"optimizer": {"lr": 3e-4}, "training": {"seed": 1}},
        "application/merge-patch+json",
        is_required=False,
    )
}
EDIT: dict[str, Any] = {
    "openapi_extra": _body(
        {"description": "A JSON merge patch of name, tags, metadata, priority and not_before"},
        {"name": "btc, second try", "priority": 5},
        "application/merge-patch+json",
        is_required=True,
    )
}
MOVE: dict[str, Any] = {
    "openapi_extra": _body(
        {"properties": {"before": _ID, "after": _ID}, "minProperties": 1, "maxProperties": 1},
        {"before": "01ARZ3NDEKTSV4RRFFQ69G5FAV"},
        "application/json",
        is_required=True,
    )
}


def _file(media_type: str, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {media_type: {"schema": {"type": "string", "format": "binary"}}},
    }


PLOT: dict[str, Any] = {
    "responses": {200: _file("image/png", "The curves"), 304: {"description": "Nothing has changed"}}
}
ARTIFACT: dict[str, Any] = {"responses": {200: _file("application/octet-stream", "The file")}}
CHECKPOINT: dict[str, Any] = {
    "responses": {
        200: _file("application/octet-stream", "The file"),
        206: _file("application/octet-stream", "The range"),
        304: {"description": "Nothing has changed"},
    }
}
LOG: dict[str, Any] = {
    "responses": {
        200: {
            "description": "The text; with q the lines that hold it",
            "headers": {
                "Next-Offset": {"description": "Where to go on, in bytes", "schema": {"type": "integer"}},
                "Log-Size": {"description": "Size of the log in bytes", "schema": {"type": "integer"}},
            },
            "content": {"application/json": {"schema": {"$ref": f"{_REF}LogHits"}}},
        }
    }
}


def install(app: FastAPI) -> None:
    """Describe the app with the schemas that no handler's type names."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=TAGS
    )
    request = JobRequest.model_json_schema(ref_template=_REF + "{model}")
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known |= request.pop("$defs") | {
        "JobRequest": request,
        "Problem": problems.SCHEMA,
        "LogHits": schemas.LogHits.model_json_schema(ref_template=_REF + "{model}"),
    }
    return document
