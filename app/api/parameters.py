"""Parameters that several addresses share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from app.errors import JobNotFound
from app.jobs.config import Text

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def _job_id(job_id: Annotated[str, Path(description="A job's id.")]) -> str:
    # What cannot be an id is answered like an id that does not exist.
    if not _ULID.fullmatch(job_id):
        raise JobNotFound(hint="GET /jobs lists the jobs there are.")
    return job_id


JobId = Annotated[str, Depends(_job_id)]


class Query(BaseModel):
    """Query parameters of an address; one it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _split(value: Any) -> Any:
    """Read a list given as a,b or as repeated parameters."""
    if isinstance(value, list):
        return [part for text in value for part in str(text).split(",") if part]
    return value


Commas = BeforeValidator(_split)
Term = Annotated[Text, StringConstraints(min_length=1, max_length=120)]
