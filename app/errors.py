"""The errors a user can cause: each knows its HTTP status, its code, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.text import escaped

# Problems that are listed. Whoever looks for them stops one later: then there are more.
MAX_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input: where it is (an RFC 6901 pointer), what it is, what helps."""

    pointer: str
    code: str
    message: str
    hint: str | None = None


class ServiceError(Exception):
    """The request cannot be served."""

    # A subclass's docstring is its default message.
    status: int = 400
    code: str = "bad_request"

    def __init__(
        self,
        message: str | None = None,
        hint: str | None = None,
        *,
        problems: Sequence[Problem] = (),
    ) -> None:
        self.message = message or (type(self).__doc__ or self.code).strip().splitlines()[0]
        self.hint = hint
        self.problems = tuple(problems)
        super().__init__(self.message)


class InvalidRequest(ServiceError):
    """The request has problems; each is listed."""

    status, code = 422, "invalid_request"


class InvalidData(ServiceError):
    """The data cannot be trained on as they are."""

    status, code = 422, "data_invalid"


class JobNotFound(ServiceError):
    """No job has this id."""

    status, code = 404, "job_not_found"


class IllegalTransition(ServiceError):
    """The job's status does not allow this."""

    status, code = 409, "illegal_transition"


class StorageUnavailable(ServiceError):
    """The database cannot be reached or written just now."""

    status, code = 503, "storage_unavailable"


class StorageFull(StorageUnavailable):
    """The disk of the database is full."""

    status, code = 507, "storage_full"


class StorageDamaged(StorageUnavailable):
    """The database file is damaged, or not the one the service began with."""

    code = "storage_damaged"


def told(error: Exception) -> str:
    """Say an error to a person: one line, with what helps, nothing in it that a terminal would obey."""
    hint = getattr(error, "hint", None)
    return escaped(f"{error} {hint}" if hint else str(error))


def shown(text: object, limit: int = 64) -> str:
    """Quote user input for a message: one line, printable, at most `limit` characters."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text)[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
