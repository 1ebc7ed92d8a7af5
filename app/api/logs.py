"""A job's log as text: by byte offsets, from its end, or searched."""

from __future__ import annotations

import io
from typing import Annotated, BinaryIO, Self

from fastapi import APIRouter, Query
from pydantic import Field, StringConstraints, model_validator
from starlette.responses import PlainTextResponse, Response

from app.api import openapi, parameters
from app.api.logfile import Chunk, LogFile
from app.api.parameters import JobId
from app.api.reply import Json
from app.api.services import Services, Use
from app.errors import ServiceError

router = APIRouter(tags=["logs"])

MAX_BYTES = 8 * 2**20


class LogGone(ServiceError):
    """The job's log file is no longer there."""

    status, code = 404, "log_gone"


class BeyondEnd(ServiceError):
    """The offset lies beyond the end of the log."""

    status, code = 416, "offset_beyond_end"


class LogQuery(parameters.Query):
    tail: Annotated[int | None, Field(ge=0, le=100_000, description="Only the last lines.")] = None
    offset: Annotated[int | None, Field(ge=0, le=2**63 - 1, description="From this byte on.")] = None
    limit: Annotated[
        int | None,
        Field(
            ge=1, le=MAX_BYTES, description="At most so many bytes (2^20); with q: hits (100, at most 1000)."
        ),
    ] = None
    q: Annotated[
        str | None,
        StringConstraints(min_length=1, max_length=200),
        Field(description="Search the whole log for this text; answers JSON."),
    ] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.tail is not None and (self.offset is not None or self.q is not None):
            raise ValueError("tail goes with neither offset nor q")
        return self


@router.get("/jobs/{job_id}/logs", operation_id="read_log", response_class=PlainTextResponse, **openapi.LOG)
def read_log(job_id: JobId, query: Annotated[LogQuery, Query()], use: Use) -> Response:
    """Read the log of the training process.

    The header Next-Offset says where to go on, Log-Size what there is; control characters come escaped.
    """
    with _opened(use, job_id) as file:
        log = LogFile(file)
        if query.q is not None:
            return Json(log.search(query.q, offset=query.offset or 0, limit=min(query.limit or 100, 1000)))
        chunk = _chunk(log, query)
    headers = {"Next-Offset": str(chunk.end), "Log-Size": str(log.size), "Cache-Control": "no-cache"}
    return PlainTextResponse(chunk.text, headers=headers)


def _chunk(log: LogFile, query: LogQuery) -> Chunk:
    limit = query.limit or 2**20
    if query.tail is not None:
        return log.tail(query.tail, limit)
    offset = query.offset or 0
    if offset > log.size:
        raise BeyondEnd(f"The log has {log.size} bytes.", f"Ask with offset={log.size} for what comes next.")
    return log.read(offset, limit)


def _opened(services: Services, job_id: str) -> BinaryIO:
    name = services.queue.get(job_id).log_name
    if name is None:
        return io.BytesIO()  # it has not run yet
    try:
        return services.paths.log(name).open("rb")
    except FileNotFoundError as error:
        raise LogGone from error
