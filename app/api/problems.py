"""Every error as a problem (RFC 9457): one shape, nothing of the server's inside."""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app.api.queries import parameter_problem, parameter_schemas
from app.api.reply import Json
from app.errors import MAX_PROBLEMS, Problem, ServiceError, StorageUnavailable

RETRY_AFTER_S = 2

_log = logging.getLogger("saimp.api")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "errors"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:saimp:problem:invalid_request"]},
        "title": {"type": "string", "examples": ["The request has problems; each is listed."]},
        "status": {"type": "integer", "examples": [422]},
        "detail": {"type": "string"},
        "code": {"type": "string", "description": "For programs; never changes its meaning."},
        "hint": {"type": ["string", "null"], "description": "What helps."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "code", "message", "hint"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "Where in the body (RFC 6901); /query/... and /header/... otherwise.",
                        "examples": ["/training/batch_size"],
                    },
                    "code": {"type": "string", "examples": ["out_of_range"]},
                    "message": {"type": "string"},
                    "hint": {"type": ["string", "null"]},
                },
            },
        },
    },
}


def install(app: FastAPI) -> None:
    """Answer every error of the app with a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


def problem(
    status: int,
    code: str,
    title: str,
    detail: str | None = None,
    hint: str | None = None,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Render a problem; at most 100 errors are listed, and it says when there are more."""
    body = {
        "type": f"urn:saimp:problem:{code}",
        "title": title,
        "status": status,
        "detail": _detail(detail or title, errors),
        "code": code,
        "hint": hint,
        "errors": [
            {"pointer": e.pointer, "code": e.code, "message": e.message, "hint": e.hint}
            for e in errors[:MAX_PROBLEMS]
        ],
    }
    return Json(body, status, headers, media_type="application/problem+json")


def _detail(detail: str, errors: Sequence[Problem]) -> str:
    """Name the first problem, so that the sentence alone helps."""
    if not errors:
        return detail
    first = f"{errors[0].pointer}: {errors[0].message}" if errors[0].pointer else errors[0].message
    if len(errors) == 1:
        return first
    if len(errors) > MAX_PROBLEMS:
        return f"More than {MAX_PROBLEMS} problems; the first {MAX_PROBLEMS} are listed. {first}"
    return f"{len(errors)} problems. {first}"


def _service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    title = (type(error).__doc__ or error.code).strip().splitlines()[0]
    if isinstance(error, StorageUnavailable):
        _log.warning("%s", error.message)  # it may name files and hosts: not for the answer
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return problem(error.status, error.code, title, hint=error.hint, headers=headers)
    given: Mapping[str, str] | None = getattr(error, "headers", None)
    return problem(error.status, error.code, title, error.message, error.hint, error.problems, given)


def _validation_error(request: Request, error: Exception) -> Response:
    """Say which parameters are wrong; bodies are read elsewhere."""
    assert isinstance(error, RequestValidationError)
    schemas = parameter_schemas(request.scope.get("route"))
    errors = error.errors()[: MAX_PROBLEMS + 1]
    found = dict.fromkeys(parameter_problem(one, schemas) for one in errors)
    return problem(422, "invalid_request", "The request has problems; each is listed.", errors=list(found))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = http.HTTPStatus(error.status_code).phrase
    detail, hint = {
        404: ("There is nothing at this address.", "GET /docs lists the addresses."),
        405: ("This address does not know this method.", "The header Allow lists those it knows."),
    }.get(error.status_code, (phrase, None))
    code = phrase.lower().replace(" ", "_")
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
    return problem(error.status_code, code, phrase, detail, hint, headers=headers)


def _allowed(request: Request) -> str:
    """List the methods of an address; the routes of one address know only their own."""
    methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"}
    routes = request.app.routes
    return ", ".join(
        method
        for method in sorted(methods)
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    )


def _internal_error(_request: Request, _error: Exception) -> Response:
    # Starlette raises it again behind the answer: the server's log has the traceback.
    return problem(
        500,
        "internal",
        "The service has a fault.",
        "The request met a fault of the service, which its log tells about.",
        "Try again; if it stays, report it with the log of the API.",
    )
