"""What becomes of a job: pause, resume, retry, clone, edit, move, delete; and of the queue: drain, open."""

from __future__ import annotations

import itertools
import logging
import shutil
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.responses import Response

from app.api import openapi, parameters, schemas, views
from app.api.body import json_body, json_body_or_none
from app.api.explain import read_job
from app.api.jobs import Key, rendered
from app.api.mergepatch import merged
from app.api.parameters import JobId
from app.api.reply import Json
from app.api.services import Services, Use
from app.api.submit import admit, whole
from app.api.values import key_problem
from app.errors import MAX_PROBLEMS, InvalidRequest, JobNotFound, Problem
from app.jobs.allowed import did_you_mean
from app.jobs.config import JobRequest
from app.jobs.queue import Row
from app.jobs.queue.orders import EDITABLE

router = APIRouter(tags=["jobs"])

Body = Annotated[tuple[Any, list[Problem]], Depends(json_body)]
MaybeBody = Annotated[tuple[Any, list[Problem]], Depends(json_body_or_none)]

_log = logging.getLogger("saimp.api")


class RetryQuery(parameters.Query):
    from_: Annotated[Literal["checkpoint", "start"], Field(alias="from")] = "checkpoint"
    """checkpoint: go on where the job was saved last, when config and data agree; start: from zero."""


class DrainQuery(parameters.Query):
    running: Literal["preempt", "finish"] = "preempt"
    """What runs is put back into the queue, saved; or may run to its end."""


class DeleteQuery(parameters.Query):
    champion: Literal["drop"] | None = None
    """drop: also the job behind `saimp_best.pth`, or the promoted one; the next best follows."""


@router.post("/jobs/{job_id}/pause", operation_id="pause_job", response_model=schemas.Job, **openapi.ORDER)
def pause(job_id: JobId, use: Use) -> Response:
    """Pause a job: at once when it waits, else as soon as its worker has saved it (202)."""
    row, is_done = use.queue.pause(job_id)
    return Json(rendered(use, row), 200 if is_done else 202)


@router.post("/jobs/{job_id}/resume", operation_id="resume_job", response_model=schemas.Job, **openapi.ORDER)
def resume(job_id: JobId, use: Use) -> Response:
    """Let a paused job wait for its turn again; it goes on where it was."""
    row, is_done = use.queue.resume(job_id)
    return Json(rendered(use, row), 200 if is_done else 202)


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retry_job",
    status_code=201,
    response_model=schemas.Job,
    **openapi.COPY,
)
def retry(
    job_id: JobId, query: Annotated[RetryQuery, Query()], use: Use, idempotency_key: Key = None
) -> Response:
    """Queue a job that has ended once more, as a new job that goes on from its newest resume checkpoint.

    It starts from zero with from=start, when there is no such checkpoint, or when the data have changed. Of a
    job that has succeeded there is nothing to go on with: only from=start is accepted.
    """
    is_retry = query.from_ == "checkpoint"
    if is_retry:
        use.queue.check_retry(job_id)
    config = _inherited(use, job_id)
    row, is_new = admit(use, config, [], idempotency_key, parent_id=job_id, is_retry=is_retry)
    return _made(use, row, is_new)


@router.post(
    "/jobs/{job_id}/clone",
    operation_id="clone_job",
    status_code=201,
    response_model=schemas.Job,
    **openapi.CLONE,
)
def clone(job_id: JobId, body: MaybeBody, use: Use, idempotency_key: Key = None) -> Response:
    """Queue a new job, from zero, with the config of this one; the body is a JSON merge patch of it.

    Where the patch names another kind of model, loss, optimizer, schedule or split, that section starts from
    its defaults.
    """
    patch, problems = body
    config = merged(_inherited(use, job_id), patch)
    row, is_new = admit(use, config, problems, idempotency_key, parent_id=job_id)
    return _made(use, row, is_new)


@router.patch("/jobs/{job_id}", operation_id="edit_job", response_model=schemas.Job, **openapi.EDIT)
def edit(job_id: JobId, body: Body, use: Use) -> Response:
    """Change name, tags, metadata, priority or not_before; the body is a JSON merge patch of them.

    A new priority keeps the job's place among those of that priority: the older goes first, unless moved.
    """
    row = use.queue.get(job_id)
    request, names = _edited(row, *body)
    return Json(rendered(use, use.queue.edit(job_id, request, names)))


@router.post("/jobs/{job_id}/move", operation_id="move_job", response_model=schemas.Job, **openapi.MOVE)
def move(job_id: JobId, body: Body, use: Use) -> Response:
    """Put a waiting job right before or right after another one; it takes that job's priority."""
    use.queue.get(job_id)
    side, neighbour_id = _neighbour(*body)
    return Json(rendered(use, use.queue.move(job_id, **{side: neighbour_id})))


@router.delete("/jobs/{job_id}", operation_id="delete_job", status_code=204, response_class=Response)
def delete(job_id: JobId, query: Annotated[DeleteQuery, Query()], use: Use) -> Response:
    """Delete a job that has ended, with its history, metrics, log and files; the champion only if told."""
    use.queue.delete(job_id, partial(_remove_files, use), drops_champion=query.champion == "drop")
    return Response(status_code=204)


@router.post(
    "/queue/drain", operation_id="drain_queue", tags=["service"], response_model=schemas.Line, **openapi.DRAIN
)
def drain(query: Annotated[DrainQuery, Query()], use: Use) -> Response:
    """Start no job any more, until the queue is opened; 202 while a running job must be put back."""
    is_idle = use.queue.drain(is_preempting=query.running == "preempt")
    is_done = is_idle or query.running == "finish"
    return Json(views.line(use.queue), 200 if is_done else 202)


@router.post("/queue/open", operation_id="open_queue", tags=["service"], response_model=schemas.Line)
def open_queue(use: Use) -> Response:
    """Start jobs again."""
    use.queue.open()
    return Json(views.line(use.queue))


def _made(use: Services, row: Row, is_new: bool) -> Response:
    headers = {"Location": f"/jobs/{row.id}"} | ({} if is_new else {"Idempotent-Replay": "true"})
    return Json(rendered(use, row), 201 if is_new else 200, headers)


def _inherited(use: Services, job_id: str) -> dict[str, Any]:
    """Take a job's config, without the dependencies that have been deleted since."""
    config: dict[str, Any] = whole(use.queue.get(job_id)).config
    return {**config, "depends_on": [needs_id for needs_id in config["depends_on"] if _exists(use, needs_id)]}


def _exists(use: Services, job_id: str) -> bool:
    try:
        use.queue.get(job_id)
    except JobNotFound:
        return False
    return True


def _edited(row: Row, patch: Any, found: list[Problem]) -> tuple[JobRequest, list[str]]:
    """Read a patch of a job's labels as (a request with all of them, the names it is about)."""
    if not isinstance(patch, dict):
        raise InvalidRequest(problems=[Problem("", "wrong_type", "must be an object")])
    config = whole(row).config
    fixed = [
        _not_editable(key)
        for key in itertools.islice((key for key in patch if key not in EDITABLE), MAX_PROBLEMS + 1)
    ]
    labels = {name: config[name] for name in EDITABLE}
    asked = {key: value for key, value in patch.items() if key in EDITABLE}
    # The rest of the config has been judged at submit.
    request, problems = read_job({**merged(labels, asked), "data": {"path": "demo"}}, found)
    if fixed or problems or request is None:
        raise InvalidRequest(problems=[*fixed, *problems])
    return request, [name for name in EDITABLE if name in patch]


def _not_editable(key: str) -> Problem:
    if key in JobRequest.model_fields:
        return key_problem(
            "", key, "not_editable", "cannot change after submit", "Clone the job with this change."
        )
    return key_problem("", key, "unknown_field", "is no field here", did_you_mean(key, sorted(EDITABLE)))


def _neighbour(body: Any, found: list[Problem]) -> tuple[str, str]:
    """Read {"before": id} or {"after": id}."""
    if not isinstance(body, dict):
        raise InvalidRequest(problems=[Problem("", "wrong_type", "must be an object")])
    sides = ("before", "after")
    unknown = itertools.islice((key for key in body if key not in sides), MAX_PROBLEMS + 1)
    problems = found + [
        key_problem("", key, "unknown_field", "is no field here", "Known here: after, before.")
        for key in unknown
    ]
    if not problems and len(body) != 1:
        problems = [Problem("", "missing", 'must name one neighbour, as in {"before": "<job id>"}')]
    problems += [
        Problem(f"/{side}", "wrong_type", "must be a job's id (26 letters and digits)")
        for side in sides
        if side in body and not isinstance(body[side], str)
    ]
    if problems:
        raise InvalidRequest(problems=problems)
    return next(iter(body.items()))


def _remove_files(use: Services, row: Row) -> None:
    folder = use.paths.job(row.id)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("the files of job %s are not all gone: %s", row.id, folder)
    if row.log_name is not None:
        for file in (use.paths.log(row.log_name), use.paths.plot(row.log_name)):
            with suppress(FileNotFoundError):
                file.unlink()
