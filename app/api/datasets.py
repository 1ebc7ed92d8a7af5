"""Datasets: what there is below the data root."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.api import schemas
from app.api.reply import Json
from app.api.services import Use
from app.datasets.catalog import list_datasets as datasets_below

router = APIRouter(tags=["datasets"])


@router.get("/datasets", operation_id="list_datasets", response_model=schemas.DatasetPage)
def list_datasets(use: Use) -> Response:
    """List what can be the data.path of a job: files and folders of Parquet."""
    entries = datasets_below(use.settings.data_root)
    data = [{"path": e.path, "kind": e.kind, "files": e.files, "size_bytes": e.size_bytes} for e in entries]
    return Json({"data": data})
