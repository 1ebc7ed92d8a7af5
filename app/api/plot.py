"""The curves of a job as a picture; before the first epoch, a picture that says so."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api import openapi
from app.api.etags import matches, not_modified
from app.api.parameters import JobId
from app.api.services import Use
from app.jobs.queue import Row

router = APIRouter(tags=["files"])


@router.get("/jobs/{job_id}/plot", operation_id="read_plot", **openapi.PLOT)
def read_plot(job_id: JobId, request: Request, use: Use) -> Response:
    """Read loss and accuracy as a PNG, redrawn after every epoch."""
    row = use.queue.get(job_id)
    picture = _drawn(use.paths.plot(row.log_name)) if row.log_name else None
    picture = picture or placeholder(row)
    etag = f'"{hashlib.sha256(picture).hexdigest()[:20]}"'
    if matches(request.headers.get("if-none-match"), etag):
        return not_modified(etag)
    return Response(picture, headers={"ETag": etag, "Cache-Control": "no-cache"}, media_type="image/png")


def _drawn(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def placeholder(row: Row) -> bytes:
    """Draw a picture that says why there are no curves yet."""
    # Pillow takes some MB: an API at rest does without.
    from PIL import Image, ImageDraw  # noqa: PLC0415

    text = f"no epoch has finished yet\njob {row.id}: {row.status}"
    image = Image.new("L", (640, 400), 255)
    ImageDraw.Draw(image).multiline_text((320, 200), text, fill=96, anchor="mm", align="center", font_size=18)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
