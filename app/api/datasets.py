"""Datasets: what there is below the data root, what is in it, and whether it leaks."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field
from starlette.responses import Response

from app.api import parameters, schemas
from app.api.body import json_body
from app.api.explain import read_job
from app.api.reply import Json
from app.api.services import Use
from app.datasets.catalog import DatasetEntry, each_dataset, list_bucket
from app.datasets.errors import NoFiles, PreflightTimeout, SourceUnavailable
from app.errors import InvalidRequest, Problem, ServiceError
from app.jobs.config import Column, DataConfig

router = APIRouter(tags=["datasets"])

Body = Annotated[tuple[Any, list[Problem]], Depends(json_body)]

_AUDIT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobRequest"},
                "examples": {
                    "minimal": {"summary": "A dataset", "value": {"data": {"path": "demo"}}},
                    "horizon": {
                        "summary": "With its horizon and groups",
                        "value": {"data": {"path": "btc", "horizon_s": 60, "group": "symbol"}},
                    },
                },
            }
        },
    }
}


class DatasetNotFound(ServiceError):
    """There is no such dataset below the data root."""

    status, code = 404, "dataset_not_found"


class TooSlow(ServiceError):
    """The dataset is too large to be looked at over HTTP."""

    # Not 503: the same question would take as long again.
    status, code = 422, "dataset_too_slow"


class Description(schemas.Answer):
    """A dataset, for a person to judge."""

    path: str
    fingerprint: str
    files: list[dict[str, Any]]
    rows: int
    timestamp: dict[str, Any]
    features: dict[str, Any]
    label: str
    label_end: str | None
    horizon_s: float
    metadata: dict[str, Any] | None
    start: str | None
    end: str | None
    largest_gaps: list[dict[str, Any]]
    duplicate_timestamps: int
    judged_inside: str
    """group or dataset."""
    groups: list[str] | None
    classes: list[str] | None
    label_counts: dict[str, int]
    feature_values: dict[str, Any] | None
    splits: dict[str, Any] | None
    dropped: dict[str, int | None] | None
    rows_read: int
    is_partial: bool
    """Time ran out: what was read until then is described."""
    warnings: list[dict[str, str]]
    errors: list[dict[str, Any]]


class Finding(schemas.Answer):
    """One leak."""

    code: str
    severity: str
    """leak or suspect."""
    message: str
    remedy: str
    evidence: dict[str, Any]


class Audit(schemas.Answer):
    """What an audit found; no findings is good."""

    path: str
    fingerprint: str
    rows: int
    rows_read: int
    rows_judged: int
    is_partial: bool
    findings: list[Finding]
    warnings: list[dict[str, str]]


class InspectQuery(parameters.Query):
    group: Column | None = None
    """Column that separates series."""
    timestamp: Column = "timestamp"
    label: Column = "label"
    label_end: Column | None = None
    """When the label is known; null = "label_end" if present."""
    horizon_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Seconds the label looks ahead; null = the dataset's metadata."""
    window: Annotated[int, Field(ge=1, le=65536)] = 32


@router.get("/datasets", operation_id="list_datasets", response_model=schemas.DatasetPage)
def list_datasets(use: Use) -> Response:
    """List what can be the data.path of a job: files and folders of Parquet, here and in allowed buckets."""
    sources, limit_s = use.settings.sources, use.settings.preflight_s
    entries: list[DatasetEntry] = []
    warnings: list[dict[str, str]] = []
    try:
        for entry in each_dataset(sources.folder, deadline=time.monotonic() + limit_s):
            entries.append(entry)
    except PreflightTimeout:
        message = f"Time ran out after {limit_s:g} s; what comes by name after these is not listed."
        warnings.append({"code": "listing_partial", "message": message})
    for bucket in sources.buckets:
        try:
            entries += list_bucket(bucket)
        except SourceUnavailable as error:
            warnings.append({"code": error.code, "message": error.message})
    data = [{"path": e.path, "kind": e.kind, "files": e.files, "size_bytes": e.size_bytes} for e in entries]
    return Json({"data": data, "warnings": warnings})


@router.get("/datasets/{path:path}", operation_id="read_dataset", response_model=Description)
def read_dataset(
    path: Annotated[str, Path(description="As data.path of a job.", min_length=1, max_length=1024)],
    query: Annotated[InspectQuery, Query()],
    use: Use,
) -> Response:
    """Describe a dataset: schema, rows, time range and holes, classes, features, the default split."""
    # pyarrow takes 40 MB: an API at rest does without.
    from app.datasets.inspect import inspect_dataset  # noqa: PLC0415

    data = _data({"data": {"path": path, **query.model_dump()}}, [])
    try:
        found = inspect_dataset(
            use.settings.sources,
            data,
            deadline=time.monotonic() + use.settings.preflight_s,
            budget_bytes=use.settings.stream_budget,
        )
    except NoFiles as error:
        raise DatasetNotFound(error.message, error.hint) from None
    except PreflightTimeout:
        raise _too_slow("inspect", use.settings.preflight_s, "/path/path") from None
    return Json(found)


@router.post("/datasets/audit", operation_id="audit_dataset", response_model=Audit, openapi_extra=_AUDIT)
def audit_dataset(body: Body, use: Use) -> Response:
    """Look for leaks in the data of a job: its body, of which only `data` is needed."""
    from app.datasets.audit import audit_dataset as audit  # noqa: PLC0415

    data = _data(*body)
    try:
        found = audit(
            use.settings.sources,
            data,
            deadline=time.monotonic() + use.settings.preflight_s,
            budget_bytes=use.settings.stream_budget,
        )
    except PreflightTimeout:
        raise _too_slow("audit", use.settings.preflight_s, "/data/path") from None
    return Json(found)


def _data(value: Any, found: list[Problem]) -> DataConfig:
    request, problems = read_job(value, found)
    if request is None:
        raise InvalidRequest(problems=problems)
    return request.data


def _too_slow(command: str, limit_s: float, pointer: str) -> TooSlow:
    message = f"Not even the plan of the split was had in {limit_s:g} s."
    hint = f"Use `saimp data {command}` on the machine that holds the data, or raise SAIMP_PREFLIGHT_S."
    return TooSlow(message, hint, problems=[Problem(pointer, TooSlow.code, message, hint)])
