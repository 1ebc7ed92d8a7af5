"""The service itself: is it alive, is it ready, which version, who works, who waits."""

from __future__ import annotations

import platform
from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints
from starlette.responses import Response

from app import migrate
from app.api import parameters, schemas, views
from app.api.problems import problem
from app.api.reply import Json
from app.api.services import Services, Use
from app.errors import Problem, StorageUnavailable
from app.jobs.states import Status
from app.version import version_text

router = APIRouter(tags=["service"])


class QueueQuery(parameters.Query):
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: Annotated[
        str | None,
        StringConstraints(pattern=r"^-?[0-9]{1,4}\.-?[0-9]{1,19}\.[0-7][0-9A-HJKMNP-TV-Z]{25}$"),
        Field(description="The `next_after` of the page before."),
    ] = None


@router.get("/", operation_id="read_service", response_model=schemas.Service)
def read_service() -> Response:
    """Say what this is and where things are."""
    links = (
        "jobs",
        "champions",
        "datasets",
        "queue",
        "workers",
        "docs",
        "openapi.json",
        "healthz",
        "readyz",
        "version",
        "metrics",
    )
    return Json(
        {"name": "SAIMP Train", "version": version_text(), "links": {name: f"/{name}" for name in links}}
    )


@router.get("/healthz", operation_id="read_health", response_model=schemas.Health)
async def read_health() -> Response:
    """Say that the process lives."""
    return Json({"status": "ok"})


@router.get("/readyz", operation_id="read_readiness", response_model=schemas.Health)
def read_readiness(use: Use) -> Response:
    """Say whether jobs can be taken and run; 503 says what is missing."""
    missing = _missing(use)
    if missing:
        return problem(
            503, "not_ready", "The service is not ready.", errors=missing, headers={"Retry-After": "2"}
        )
    return Json({"status": "ok"})


@router.get("/version", operation_id="read_version", response_model=schemas.Version)
def read_version() -> Response:
    """Name the versions of the service, of its schema and of Python."""
    return Json({"version": version_text(), "schema": migrate.head(), "python": platform.python_version()})


@router.get("/workers", operation_id="list_workers", response_model=schemas.WorkerPage)
def list_workers(use: Use) -> Response:
    """List the workers, their heartbeat and machine, and the job each runs."""
    now = use.queue.now()
    running, _ = use.queue.page(statuses=[Status.RUNNING])
    jobs = {row.slot: row.id for row in running}
    return Json({"data": [views.worker(row, jobs, now) for row in use.queue.workers()]})


@router.get("/queue", operation_id="read_queue", response_model=schemas.Line)
def read_queue(query: Annotated[QueueQuery, Query()], use: Use) -> Response:
    """List the jobs that wait in the order they will run, and why they wait."""
    after = None if query.after is None else views.LinePlace.read(query.after)
    return Json(views.line(use.queue, query.limit, after))


def _missing(services: Services) -> list[Problem]:
    try:
        if migrate.current(services.database) != migrate.head():
            return [
                Problem(
                    "", "wrong_schema", "the database's schema is not this program's", "run: saimp migrate"
                )
            ]
        now = services.queue.now()
        if not any(views.is_alive(row, now) for row in services.queue.workers()):
            return [Problem("", "no_worker", "no worker has been heard of lately", "run: saimp worker")]
    except (StorageUnavailable, sa.exc.SQLAlchemyError):
        return [Problem("", "storage_unavailable", "the database does not answer")]
    return []
