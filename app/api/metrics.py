"""What a job measures, and its history: behind a cursor, with long polls."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.api import parameters, schemas, views
from app.api.longpoll import Wait, wait_until
from app.api.parameters import Commas, JobId
from app.api.reply import Json
from app.api.services import Services, Use
from app.errors import Problem, ServiceError
from app.jobs.metrics import SCOPES, Metrics, Scope, since
from app.jobs.queue import Row
from app.jobs.states import FINAL

router = APIRouter(tags=["metrics"])


class BadCursor(ServiceError):
    """The cursor is not one of this job's."""

    status, code = 422, "bad_cursor"


class MetricsQuery(parameters.Query):
    scope: Annotated[tuple[Scope, ...], Commas, Field(description="Any of epoch, batch, system.")] = SCOPES
    after: Annotated[str | None, Field(description="The `next_after` of the answer before.")] = None
    max_points: Annotated[
        int | None, Field(ge=2, le=20_000, description="Thin batches and system; the extremes stay.")
    ] = None
    wait: Wait = 0


class EventsQuery(parameters.Query):
    after: Annotated[int, Field(ge=0, le=2**63 - 1, description="The last `seq` known.")] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 1000
    wait: Wait = 0


@router.get("/jobs/{job_id}/metrics", operation_id="read_metrics", response_model=schemas.Metrics)
async def read_metrics(
    job_id: JobId, query: Annotated[MetricsQuery, Query()], request: Request, use: Use
) -> Response:
    """Read what a job measured behind a cursor; with wait, answer when there is more.

    Where `rewinds` names positions, drop what you have beyond them before you add these rows.
    """
    after = None if query.after is None else _decoded(query.after, job_id)
    statuses: list[str] = []

    def look() -> Metrics:
        found = _measured(use, job_id, query, after)
        statuses.append(found.status)
        return found

    found = await wait_until(
        lambda found: not found.is_empty or found.status in FINAL or found.status != statuses[0],
        look,
        wait_s=query.wait,
        request=request,
        services=use,
    )
    return Json(_rendered(job_id, found))


@router.get("/jobs/{job_id}/events", operation_id="list_events", response_model=schemas.EventPage)
async def list_events(
    job_id: JobId, query: Annotated[EventsQuery, Query()], request: Request, use: Use
) -> Response:
    """Read a job's history behind a sequence number."""
    rows = await wait_until(
        bool,
        lambda: use.queue.events(job_id, after=query.after, limit=query.limit + 1),
        wait_s=query.wait,
        request=request,
        services=use,
    )
    page = rows[: query.limit]
    next_after = page[-1].seq if page else query.after
    data = [views.event(row) for row in page]
    return Json({"data": data, "has_more": len(rows) > len(page), "next_after": next_after})


def _measured(services: Services, job_id: str, query: MetricsQuery, after: int | None) -> Metrics:
    row = services.queue.get(job_id)
    with services.database.reading() as connection:
        return since(
            connection,
            job_id,
            after=after,
            scopes=set(query.scope),
            max_points=query.max_points,
            classes=_classes(row),
        )


def _classes(row: Row) -> list[str] | None:
    """Find the names of the classes: as resolved, else as asked for."""
    for source in (row.resolved, row.plan, row.config.get("data")):
        if source and source.get("classes"):
            return list(source["classes"])
    return None


def _rendered(job_id: str, found: Metrics) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "status": found.status,
        "epochs": found.epochs,
        "batches": found.batches,
        "system": found.systems,
        "rewinds": found.rewinds,
        "next_after": _encoded(job_id, found.seq),
        "has_more": found.has_more,
    }


def _encoded(job_id: str, seq: int) -> str:
    return base64.urlsafe_b64encode(f"{job_id[-8:]}.{seq:x}".encode()).decode().rstrip("=")


def _decoded(cursor: str, job_id: str) -> int:
    try:
        text = base64.b64decode(cursor[:64] + "=" * (-len(cursor[:64]) % 4), "-_", validate=True).decode(
            "ascii"
        )
        ending, _, number = text.partition(".")
        seq = int(number, 16)
    except (binascii.Error, ValueError) as error:
        raise _bad_cursor() from error
    if ending != job_id[-8:] or _encoded(job_id, seq) != cursor or not 0 <= seq < 2**63:
        raise _bad_cursor()
    return seq


def _bad_cursor() -> BadCursor:
    problem = Problem(
        "/query/after", "bad_cursor", "must be the next_after of an earlier answer for this job"
    )
    return BadCursor(hint="Ask without `after` to start over.", problems=[problem])
