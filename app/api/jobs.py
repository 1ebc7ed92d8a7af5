"""Jobs: submit, plan, list, read, cancel."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api import openapi, parameters, schemas, views
from app.api.body import json_body
from app.api.etags import matches, not_modified
from app.api.longpoll import Wait, wait_until
from app.api.parameters import Commas, JobId, Term
from app.api.reply import Json, encoded
from app.api.services import Services, Use
from app.api.submit import admit, plan
from app.errors import Problem
from app.jobs.queue import Row
from app.jobs.states import Status

router = APIRouter(tags=["jobs"])

Body = Annotated[tuple[Any, list[Problem]], Depends(json_body)]
Key = Annotated[
    str | None,
    Header(description="Makes a repeat of this request return the first job.", min_length=1, max_length=255),
]


class SubmitQuery(parameters.Query):
    dry_run: bool = False
    """Answer with the plan, and queue nothing."""


class ListQuery(parameters.Query):
    status: Annotated[tuple[Status, ...], Commas, Field(description="Statuses, separated by commas.")] = ()
    tag: Term | None = None
    q: Annotated[Term | None, Field(description="Part of the name, or the start of the id.")] = None
    order: Literal["newest", "oldest"] = "newest"
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    after: Annotated[
        str | None,
        StringConstraints(pattern=r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"),
        Field(description="The `next_after` of the page before."),
    ] = None


class ReadQuery(parameters.Query):
    wait: Wait = 0
    """Wait this long for a change of status; of the status that If-None-Match names, if it does."""


@router.post(
    "/jobs", operation_id="submit_job", status_code=201, response_model=schemas.Job, **openapi.SUBMIT
)
def submit(
    query: Annotated[SubmitQuery, Query()], body: Body, use: Use, idempotency_key: Key = None
) -> Response:
    """Queue a job; with dry_run=true, answer with its plan."""
    if query.dry_run:
        return Json(plan(use, *body))
    row, is_new = admit(use, *body, idempotency_key)
    headers = {"Location": f"/jobs/{row.id}"} | ({} if is_new else {"Idempotent-Replay": "true"})
    return Json(rendered(use, row), 201 if is_new else 200, headers)


@router.get("/jobs", operation_id="list_jobs", response_model=schemas.JobPage)
def list_jobs(query: Annotated[ListQuery, Query()], use: Use) -> Response:
    """List jobs, newest first."""
    rows, has_more = use.queue.page(
        statuses=query.status,
        tag=query.tag,
        text=query.q,
        newest_first=query.order == "newest",
        limit=query.limit,
        after=query.after,
    )
    where = views.standing(use.queue, rows)
    next_after = rows[-1].id if has_more else None
    return Json(
        {"data": [views.job(row, where) for row in rows], "has_more": has_more, "next_after": next_after}
    )


@router.get("/jobs/{job_id}", operation_id="read_job", response_model=schemas.Job, **openapi.NOT_MODIFIED)
async def read_job(
    job_id: JobId, query: Annotated[ReadQuery, Query()], request: Request, use: Use
) -> Response:
    """Read a job; with wait, answer when its status changes."""
    known = request.headers.get("if-none-match")
    row = await run_in_threadpool(use.queue.get, job_id)
    seen = _status_in(known) or row.status
    row = await wait_until(
        lambda row: row.status != seen or Status(row.status).is_final,
        lambda: use.queue.get(job_id),
        wait_s=query.wait,
        request=request,
        services=use,
    )
    body = await run_in_threadpool(lambda: encoded(rendered(use, row)))
    etag = f'"{row.status}-{hashlib.sha256(body).hexdigest()[:20]}"'
    if matches(known, etag):
        return not_modified(etag)
    return Response(body, headers={"ETag": etag, "Cache-Control": "no-cache"}, media_type="application/json")


@router.post("/jobs/{job_id}/cancel", operation_id="cancel_job", response_model=schemas.Job, **openapi.ORDER)
def cancel(job_id: JobId, use: Use) -> Response:
    """Cancel a job: at once when it waits, else within seconds (202)."""
    row, is_done = use.queue.cancel(job_id)
    return Json(rendered(use, row), 200 if is_done else 202)


def rendered(use: Services, row: Row) -> dict[str, Any]:
    """Render one job, with its standing in the queue."""
    return views.job(row, views.standing(use.queue, [row]))


def _status_in(etag: str | None) -> str | None:
    """Read the status out of an ETag of ours: a change since that answer is news."""
    status = (etag or "").removeprefix("W/").strip('"').partition("-")[0]
    return status if status in {str(one) for one in Status} else None
