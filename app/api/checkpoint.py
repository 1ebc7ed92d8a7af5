"""Download a job's best checkpoint: verified, by ranges, under the digest of its content."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api import openapi, schemas, views
from app.api.etags import matches, not_modified
from app.api.parameters import JobId
from app.api.reply import Json
from app.api.services import Services, Use
from app.errors import ServiceError
from app.jobs.files import BEST_NAME, sidecar
from app.jobs.queue import Row

router = APIRouter(tags=["files"])

_BLOCK = 2**18


class NoCheckpointYet(ServiceError):
    """The job has no checkpoint yet."""

    status, code = 404, "no_checkpoint_yet"


class CheckpointCorrupt(ServiceError):
    """The checkpoint on disk is not the one that was saved."""

    status, code = 409, "checkpoint_corrupt"


class BadRange(ServiceError):
    """The range lies beyond the file, or there are several."""

    status, code = 416, "range_not_satisfiable"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message, "Ask for one range below the size, such as bytes=0-1023, or for the whole.")
        self.headers = {"Content-Range": f"bytes */{size}"}


@router.get("/jobs/{job_id}/checkpoint", operation_id="download_checkpoint", **openapi.CHECKPOINT)
def download_checkpoint(job_id: JobId, request: Request, use: Use) -> Response:
    """Download the best weights so far, a plain state_dict; a range of them with Range."""
    return best_of(lambda: use.queue.get(job_id), request, use)


@router.post("/jobs/{job_id}/promote", operation_id="promote_job", response_model=schemas.Job)
def promote(job_id: JobId, use: Use) -> Response:
    """Make the job's best the champion, `saimp_best.pth` in the data root, until its promotion ends.

    A job that ends later does not replace it, however good; only another promotion does.
    """
    row, file = _opened(lambda: use.queue.get(job_id), use)
    with file:
        _verify(row, file)
    if not sidecar(use.paths.job(row.id) / row.best_file).exists():
        raise CheckpointCorrupt("The description beside the checkpoint is gone.")
    row = use.queue.promote(row.id)
    return Json(views.job(row, views.standing(use.queue, [row])))


@router.delete("/jobs/{job_id}/promote", operation_id="end_promotion", response_model=schemas.Job)
def end_promotion(job_id: JobId, use: Use) -> Response:
    """End the job's promotion: the best of the comparable jobs is the champion again."""
    row = use.queue.end_promotion(job_id)
    return Json(views.job(row, views.standing(use.queue, [row])))


def best_of(read: Callable[[], Row], request: Request, use: Services) -> Response:
    """Send the best of the job that `read` gives: verified, a range of it where one is asked for."""
    row, file = _opened(read, use)
    try:
        _verify(row, file)
        return _answer(request, row, file)
    except BaseException:
        file.close()
        raise


def _opened(read: Callable[[], Row], services: Services) -> tuple[Row, BufferedReader]:
    row = read()
    while True:
        if row.best_file is None:
            raise NoCheckpointYet(hint="It comes with the first validated epoch.")
        try:
            return row, (services.paths.job(row.id) / row.best_file).open("rb")
        except FileNotFoundError as error:
            # A better one may have replaced it since the row was read.
            before, row = row, read()
            if (row.id, row.best_file) == (before.id, before.best_file):
                raise CheckpointCorrupt("The checkpoint's file is gone.") from error


def _verify(row: Row, file: BufferedReader) -> None:
    """Hash the file, each time: a disk that rots does not touch the times of a file."""
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != row.best_sha256:
        raise CheckpointCorrupt(
            f"Its sha256 is {found[:12]}..., saved was {row.best_sha256[:12]}...",
            "The disk has changed it. Train again, or restore the file from a backup.",
        )


def _answer(request: Request, row: Row, file: BufferedReader) -> Response:
    size = os.fstat(file.fileno()).st_size
    etag = f'"{row.best_sha256}"'
    if matches(request.headers.get("if-none-match"), etag):
        file.close()
        return not_modified(etag)
    digest = base64.b64encode(bytes.fromhex(row.best_sha256)).decode()
    headers = {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f'attachment; filename="{BEST_NAME}"',
    }
    span = _range(request, etag, size)
    start, end = span or (0, size)
    headers["Content-Length"] = str(end - start)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    if request.method == "HEAD":
        file.close()
        return Response(
            status_code=206 if span else 200, headers=headers, media_type="application/octet-stream"
        )
    return _FileResponse(file, start, end, 206 if span else 200, headers)


def _range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Read the Range header as (first byte, behind the last); null = the whole file."""
    header = request.headers.get("range")
    condition = request.headers.get("if-range")
    if header is None or (condition is not None and condition != etag):
        return None
    unit, _, wanted = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    if "," in wanted:
        raise BadRange("One range at a time.", size)
    match = re.fullmatch(r"\s*(\d{0,18})-(\d{0,18})\s*", wanted, re.ASCII)
    if match is None or not (match[1] or match[2]):
        return None  # no range of bytes: RFC 9110 says to ignore it
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < int(first):
        return None
    if start >= size:
        raise BadRange(f"The file has {size} bytes.", size)
    return start, end


class _FileResponse(StreamingResponse):
    """Bytes start .. end - 1 of an open file, which is closed whenever the client leaves."""

    def __init__(
        self, file: BufferedReader, start: int, end: int, status: int, headers: Mapping[str, str]
    ) -> None:
        self._file = file
        super().__init__(_blocks(file, start, end), status, headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()  # the generator of its blocks may live on until the next garbage collection


def _blocks(file: BufferedReader, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (block := file.read(min(_BLOCK, end - start))):
        start += len(block)
        yield block
