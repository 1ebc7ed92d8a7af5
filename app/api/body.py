"""Read a request's body strictly: bounded while it streams, JSON, UTF-8, no duplicate keys, shallow."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.api.values import Path, items, key_problem, pointer_to, sound
from app.errors import MAX_PROBLEMS, Problem, ServiceError

MAX_BYTES = 2**20
MAX_DEPTH = 32
# Integers are 64 bits wide everywhere behind this door; longer ones need not be converted to be refused.
_MAX_DIGITS = 20
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|([\[{])|([\]}])', re.DOTALL)


class TooLarge(ServiceError):
    """The body is larger than 1 MiB."""

    status, code = 413, "body_too_large"


class WrongType(ServiceError):
    """The body must be JSON."""

    status, code = 415, "unsupported_media_type"


class Malformed(ServiceError):
    """The body is not JSON."""

    status, code = 400, "invalid_json"


class TooDeep(ServiceError):
    """The body is nested too deeply."""

    status, code = 400, "too_deep"


class DuplicateKey(ServiceError):
    """A key stands twice in one object."""

    status, code = 400, "duplicate_key"


class EmptyBody(ServiceError):
    """The body is empty."""

    status, code = 422, "empty_body"


class Pairs(dict[str, Any]):
    """A JSON object that remembers which of its keys stood twice."""

    repeated: tuple[str, ...] = ()


async def json_body(request: Request) -> tuple[Any, list[Problem]]:
    """Read the body as (JSON value, what no field may hold); a bad value stands as null.

    Raises a ServiceError for what is no JSON object at all.
    """
    body = await _read(request)
    if not body:
        raise EmptyBody(hint='The smallest job is {"data": {"path": "demo"}}.')
    _check_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
    # Beside the event loop: a large body takes a while, and everybody else would wait for it.
    return await run_in_threadpool(parse, body)


async def json_body_or_none(request: Request) -> tuple[Any, list[Problem]]:
    """Read the body as `json_body` does; none at all is an empty object."""
    try:
        return await json_body(request)
    except EmptyBody:
        return {}, []


async def _read(request: Request) -> bytes:
    hint = "A job is a few kilobytes; put the data below the data root and name its path."
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BYTES:
        raise TooLarge(hint=hint)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise TooLarge(hint=hint)
    return bytes(body)


def _check_type(content_type: str, encoding: str) -> None:
    hint = "Send Content-Type: application/json; `curl --json '{...}'` does."
    kind, _, parameters = content_type.lower().partition(";")
    if not re.fullmatch(r"application/([\w.-]+\+)?json", kind.strip()):
        raise WrongType(hint=hint)
    charset = re.search(r"charset\s*=\s*\"?([\w-]+)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii"):
        raise WrongType("The body must be UTF-8.", hint)
    if encoding.lower() not in ("", "identity"):
        raise WrongType("The body must not be compressed.", hint)


def parse(body: bytes) -> tuple[Any, list[Problem]]:
    """Parse JSON bytes as (value, what no field may hold). Raises Malformed, TooDeep, DuplicateKey."""
    _check_depth(body)
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise Malformed(
            f"The body is not UTF-8: byte {error.start} is out of place.", "Encode the JSON as UTF-8."
        ) from error
    except json.JSONDecodeError as error:
        raise Malformed(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            "Keys and texts take double quotes; no comments, no comma after the last item.",
        ) from error
    repeated = list(itertools.islice(_repeated(value), MAX_PROBLEMS + 1))
    if repeated:
        raise DuplicateKey(hint="Keep one of them.", problems=repeated)
    return sound(value)


def _check_depth(body: bytes) -> None:
    depth = 0
    for token in _TOKENS.finditer(body):
        depth += (token[1] is not None) - (token[2] is not None)
        if depth > MAX_DEPTH:
            raise TooDeep(hint=f"At most {MAX_DEPTH} levels.")


def _object(pairs: list[tuple[str, Any]]) -> Pairs:
    made = Pairs(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        made.repeated = tuple(key for key, count in counts.items() if count > 1)
    return made


def _integer(digits: str) -> int:
    return int(digits[: _MAX_DIGITS + 1])


def _repeated(value: Any, path: Path = ()) -> Iterator[Problem]:
    if isinstance(value, Pairs):
        for twice in value.repeated:
            yield key_problem(pointer_to(path), twice, "duplicate_key", "stands twice in one object")
    for key, item in items(value):
        if isinstance(item, dict | list):
            yield from _repeated(item, (*path, key))
