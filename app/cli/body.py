"""The body of a job, from a file, from --path and from --set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

Json = dict[str, Any]


def read_body(file: str | None, path: str | None, name: str | None, assignments: Sequence[str]) -> Json:
    """Put the body together; what comes later wins. Raises typer.BadParameter for what is no body.

    file: a JSON file, or - for stdin. path: of the data. assignments: like training.epochs=3.
    """
    body = {} if file is None else _parse(_read(file), file)
    if path is not None:
        assign(body, ["data", "path"], path)
    if name is not None:
        body["name"] = name
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not (equals and all(key.split("."))):
            raise typer.BadParameter(f"--set {assignment!r}: write it like training.epochs=3")
        assign(body, key.split("."), _value(value))
    if not body:
        raise typer.BadParameter("nothing to submit: name a JSON file, - for stdin, or --path DATASET")
    return body


def assign(body: Json, keys: Sequence[str], value: Any) -> None:
    """Set the value at a path of keys; sections that are missing are made."""
    section = body
    for key in keys[:-1]:
        inner = section.setdefault(key, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"--set {'.'.join(keys)}: {key} is no section")
        section = inner
    section[keys[-1]] = value


def _read(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read()
        with open(file, encoding="utf-8-sig") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise typer.BadParameter(f"cannot read {file}: {why}") from None


def _parse(text: str, file: str) -> Json:
    where = "stdin" if file == "-" else file
    try:
        body = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{where} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise typer.BadParameter(f"{where} must hold one JSON object")
    return body


def _object(pairs: list[tuple[str, Any]]) -> Json:
    found: Json = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:64]!r} stands twice in one object")
        found[key] = value
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _value(text: str) -> Any:
    """A value as JSON, or else the text itself: epochs=3, lr=1e-4, name=btc, clip=null."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
