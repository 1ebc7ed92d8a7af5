"""Turn a body into a JobRequest, or into every problem it has, each at its place with what is allowed there.

Sentences come from the JSON schema of the request, so that they cannot disagree with it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError

from app.api.values import child, key_problem, pointer_to
from app.errors import MAX_PROBLEMS, Problem
from app.jobs.allowed import Schema, described, did_you_mean, either, flat, text_of
from app.jobs.config import JobRequest

# What a pydantic error type means to a user. Of the errors that members of a union give for one place, the
# first of these counts: a value of the right type out of its range says more than one of a wrong type.
_CODES: dict[str, tuple[str, ...]] = {
    "unknown_field": ("extra_forbidden",),
    "missing": ("missing",),
    "out_of_range": (
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "finite_number",
        "too_long",
        "too_short",
        "string_too_long",
        "string_too_short",
        "time_out_of_range",
    ),
    "invalid_value": ("value_error", "assertion_error", "string_pattern_mismatch"),
    "invalid_time": (
        "invalid_time",
        "timezone_aware",
        "datetime_from_date_parsing",
        "datetime_parsing",
    ),
    "not_allowed": ("literal_error", "enum", "union_tag_invalid", "union_tag_not_found"),
}
_ORDER = (*_CODES, "wrong_type")
# Of a place and of what is inside it only one is told, so a few more are looked at than are listed.
_MAX_PLACES = 2 * MAX_PROBLEMS


def read_job(value: Any, found: list[Problem]) -> tuple[JobRequest | None, list[Problem]]:
    """Validate a body as (the request, or null, every problem); `found` are problems it is known to have."""
    request, problems = _validate(value)
    known = {problem.pointer for problem in found}
    problems = found + [problem for problem in problems if problem.pointer not in known]
    return (None if problems else request), problems[: MAX_PROBLEMS + 1]


def remainder(value: Any, problems: list[Problem]) -> JobRequest | None:
    """Read what is left of a body without the sections that have problems; null when its data are among them.

    With it the data of a refused job are checked too, so that all problems come at once.
    """
    if not isinstance(value, dict):
        return None
    faulty = {problem.pointer.split("/")[1] if problem.pointer else "data" for problem in problems}
    if "data" in faulty:
        return None
    request, _ = _validate({key: item for key, item in value.items() if key not in faulty})
    return request


def _validate(value: Any) -> tuple[JobRequest | None, list[Problem]]:
    try:
        return JobRequest.model_validate_json(json.dumps(_bounded(value, _schema()))), []
    except ValidationError as error:
        places: dict[str, list[tuple[dict[str, Any], list[str | int]]]] = {}
        for one in error.errors(include_url=False, include_context=False, include_input=False):
            path = _path(value, one["loc"], one["type"])
            pointer = pointer_to(path)
            # Two unknown keys too long to point at are two problems at one place.
            place = f"{pointer} {path[-1]}" if one["type"] == "extra_forbidden" else pointer
            if place in places or len(places) < _MAX_PLACES:
                places.setdefault(place, []).append((dict(one), path))
        problems = [_merge(value, errors) for errors in places.values()]
        return None, [problem for problem in problems if not _is_echo(problem, problems)]


def _bounded(value: Any, node: Schema) -> Any:
    """Leave out the keys of an object that would only add to more problems than are listed."""
    if not isinstance(value, dict):
        return value
    members = [one for one in flat(node, _schema(), value) if one.get("type", "object") == "object"]
    is_free = any("properties" not in member and "maxProperties" not in member for member in members)
    if not members or is_free:
        return value
    known = {name: inner for member in members for name, inner in member.get("properties", {}).items()}
    room = max(member.get("maxProperties", 0) for member in members) + MAX_PROBLEMS + 1
    others = itertools.islice((key for key in value if key not in known), room)
    kept = {*others, *known}
    return {key: _bounded(item, known.get(key, {})) for key, item in value.items() if key in kept}


def _is_echo(problem: Problem, problems: list[Problem]) -> bool:
    """Whether other members of a union only repeat, for the whole, what is wrong inside it."""
    return problem.code in ("not_allowed", "wrong_type") and any(
        other.pointer.startswith(f"{problem.pointer}/") for other in problems
    )


def _path(value: Any, loc: tuple[str | int, ...], kind: str) -> list[str | int]:
    """Walk the input along a pydantic location; what is no key or place in it names a member of a union."""
    path: list[str | int] = []
    for number, token in enumerate(loc, 1):
        is_last = number == len(loc)
        if isinstance(value, dict) and (token in value or (is_last and kind == "missing")):
            value = value.get(token)
            path.append(token)
        elif isinstance(value, list) and isinstance(token, int) and token < len(value):
            value = value[token]
            path.append(token)
    return path


def _merge(value: Any, errors: list[tuple[dict[str, Any], list[str | int]]]) -> Problem:
    error, path = min(errors, key=lambda pair: _ORDER.index(code_of(pair[0]["type"])))
    code = code_of(error["type"])
    if code == "missing" and isinstance(error["loc"][-1], int):
        code = "wrong_type"  # a list too short
    *above, last = path or [""]
    pointer = pointer_to(path)
    if code == "unknown_field":
        known = sorted({name for node in _nodes(value, above) for name in node.get("properties", ())})
        return key_problem(
            pointer_to(above), str(last), code, "is no field here", did_you_mean(str(last), known)
        )
    if code == "missing":
        return Problem(pointer, code, "is required", _hint(value, path))
    if code == "invalid_value" and error["type"] != "string_pattern_mismatch":
        return Problem(pointer, code, str(error["msg"]).partition(", ")[2], _hint(value, path, is_short=True))
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        names = [name for node in _nodes(value, path, is_narrowed=False) for name in _tags(node)]
        said = (
            "must say which by its name" if error["type"] == "union_tag_not_found" else "must be a known name"
        )
        return Problem(child(pointer, "name"), code, f"{said}: {either(names)}")
    if error["type"] in ("invalid_time", "time_type", "time_out_of_range"):
        return Problem(pointer, code, str(error["msg"]))
    if error["type"] == "timezone_aware":
        return Problem(pointer, code, "must say its time zone", "For example 2025-11-01T00:00:00Z.")
    if error["loc"] and error["loc"][-1] == "[key]":
        allowed = either([text_of(node.get("propertyNames", {})) for node in _nodes(value, above)])
        return key_problem(pointer_to(above), str(last), code, f"as a key must be {allowed}")
    allowed = either([text for node in _nodes(value, path) for text in described(node)])
    return Problem(pointer, code, f"must be {allowed}", _hint(value, path, is_short=True))


def code_of(kind: str) -> str:
    """Name what a pydantic error type means to a user."""
    return next((code for code, kinds in _CODES.items() if kind in kinds), "wrong_type")


def _hint(value: Any, path: list[str | int], *, is_short: bool = False) -> str | None:
    for node in _nodes(value, path, is_flat=False):
        default = node.get("default")
        if isinstance(default, str | int | float) and not isinstance(default, bool):
            return f"The default is {json.dumps(default)}."
        if node.get("description") and not is_short:
            return str(node["description"])
    return None


# ---- the schema at a place of the input ----


@cache
def _schema() -> dict[str, Any]:
    return JobRequest.model_json_schema()


def _nodes(
    value: Any, path: list[str | int], *, is_flat: bool = True, is_narrowed: bool = True
) -> list[Schema]:
    """List the schemas that may apply at a path of the input; a union counts as its members."""
    nodes: list[Schema] = [_schema()]
    for token in path:
        nodes = [
            inner
            for node in nodes
            for member in flat(node, _schema(), value)
            for inner in _inner(member, token)
        ]
        value = _item(value, token)
    if is_flat:
        nodes = [member for node in nodes for member in flat(node, _schema(), value if is_narrowed else None)]
    return nodes


def _item(value: Any, token: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(token)
    return value[token] if isinstance(value, list) and isinstance(token, int) else None


def _inner(node: Schema, token: str | int) -> Iterator[Schema]:
    if isinstance(token, int):
        listed = node.get("prefixItems", [])
        if token < len(listed):
            yield listed[token]
        elif "items" in node:
            yield node["items"]
    elif token in node.get("properties", {}):
        yield node["properties"][token]
    elif isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"]


def _tags(node: Schema) -> list[str]:
    tag = node.get("properties", {}).get("name", {}).get("const")
    return [f'"{tag}"'] if tag else []
