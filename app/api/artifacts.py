"""What a run has left: its files by name, with size and sha256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from app.api import openapi, schemas
from app.api.parameters import JobId
from app.api.reply import Json
from app.api.services import Services, Use
from app.errors import ServiceError
from app.jobs.config import canonical
from app.jobs.files import sidecar
from app.jobs.queue import Row

router = APIRouter(tags=["files"])

_TYPES = {".json": "application/json", ".md": "text/markdown", ".txt": "text/plain", ".png": "image/png"}


class NoArtifact(ServiceError):
    """The job has no file of this name."""

    status, code = 404, "no_such_artifact"


@router.get(
    "/jobs/{job_id}/artifacts",
    operation_id="list_artifacts",
    response_model=schemas.Artifacts,
)
def list_artifacts(job_id: JobId, use: Use) -> Response:
    """List the files of a job that can be downloaded: name, size in bytes, sha256."""
    row = use.queue.get(job_id)
    return Json({"data": [_described(name, path) for name, path in _files(use, row).items()]})


@router.get("/jobs/{job_id}/artifacts/{name}", operation_id="read_artifact", **openapi.ARTIFACT)
def read_artifact(job_id: JobId, name: str, use: Use) -> Response:
    """Download a file of a job. `config.json` is what was submitted, with every default."""
    row = use.queue.get(job_id)
    if name == "config.json":
        return Response(canonical(row.config), media_type="application/json")
    path = _files(use, row).get(name)
    if path is None:
        raise NoArtifact(hint=f"GET /jobs/{job_id}/artifacts lists those there are.")
    return FileResponse(path, media_type=_TYPES.get(path.suffix, "application/octet-stream"), filename=name)


def _files(services: Services, row: Row) -> dict[str, Path]:
    """Find the files there are, by the name they are given."""
    paths = services.paths
    best = paths.best(row.id)
    found = {best.name: best, sidecar(best).name: sidecar(best)}
    found |= {name: paths.job(row.id) / name for name in ("report.json", "report.md")}
    found |= {path.name: path for path in paths.exports(row.id)}
    if row.log_name:
        found |= {path.name: path for path in (paths.log(row.log_name), paths.plot(row.log_name))}
    return {name: path for name, path in found.items() if path.is_file()}


def _described(name: str, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": name, "size": file.tell(), "sha256": digest}
