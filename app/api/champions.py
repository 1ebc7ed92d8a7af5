"""The champions: of each comparison key the best job, and its checkpoint."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from app.api import openapi, parameters, schemas, views
from app.api.checkpoint import best_of
from app.api.reply import Json
from app.api.services import Use
from app.errors import ServiceError
from app.jobs.config import Text
from app.jobs.queue import Row

router = APIRouter(tags=["files"])


class NoChampion(ServiceError):
    """No job of this comparison key has ended with a best."""

    status, code = 404, "champion_not_found"


def _key(key: Annotated[str, Path(description="A comparison key, as GET /champions lists it.")]) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise NoChampion(hint="GET /champions lists those there are.")
    return key


class ListQuery(parameters.Query):
    path: Annotated[
        Annotated[Text, StringConstraints(min_length=1, max_length=1024)] | None,
        Field(description="Only keys of jobs with this data.path."),
    ] = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    after: Annotated[
        str | None,
        StringConstraints(pattern=r"^[0-9]{1,18}$"),
        Field(description="The `next_after` of the page before."),
    ] = None


@router.get("/champions", operation_id="list_champions", response_model=schemas.ChampionPage)
def list_champions(query: Annotated[ListQuery, Query()], use: Use) -> Response:
    """List the best job of each comparison key, the key whose job ended last first.

    Jobs of one key have comparable validation losses: the same data, split, windows, label and loss.
    """
    after = None if query.after is None else int(query.after)
    found, has_more = use.queue.champions(limit=query.limit, after=after, path=query.path)
    where = views.standing(use.queue, [one.row for one in found])
    data: list[dict[str, Any]] = [
        {
            "comparison_key": one.row.comparison_key,
            "promoted": one.row.is_promoted,
            "behind_file": one.is_behind_file,
            "job": views.summary(one.row, where),
        }
        for one in found
    ]
    next_after = str(found[-1].newest) if has_more else None
    return Json({"data": data, "has_more": has_more, "next_after": next_after})


@router.get("/champions/{key}/checkpoint", operation_id="download_champion_checkpoint", **openapi.CHECKPOINT)
def download_champion_checkpoint(key: Annotated[str, Depends(_key)], request: Request, use: Use) -> Response:
    """Download the best weights of a comparison key, a plain state_dict; a range of them with Range."""

    def read() -> Row:
        row = use.queue.champion(key)
        if row is None:
            raise NoChampion(hint="GET /champions lists those there are.")
        return row

    return best_of(read, request, use)
