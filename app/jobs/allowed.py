"""What a JSON schema allows, in words: the end of a sentence that begins with "must be"."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_IS_ID = "[0-9A-HJKMNP-TV-Z]{2"  # the alphabet of ids, in a pattern


def flat(node: Schema, document: Schema, value: Any = None) -> Iterator[Schema]:
    """List the schemas a node stands for: references followed, a union's members one by one.

    document: holds the definitions. value: the input there; its tag chooses among members that have one.
    """
    if "$ref" in node:
        yield from flat(document["$defs"][str(node["$ref"]).rpartition("/")[2]], document, value)
        return
    members = node.get("anyOf") or node.get("oneOf")
    if members is None:
        yield node
        return
    mapping = node.get("discriminator", {}).get("mapping", {})
    if mapping and isinstance(value, dict):
        name = node["discriminator"]["propertyName"]
        tag = value.get(name, (node.get("default") or {}).get(name))
        if isinstance(tag, str) and tag in mapping:
            members = [{"$ref": mapping[tag]}]
    for member in members:
        yield from flat(member, document, value)


def described(node: Schema) -> list[str]:
    """Say what a schema allows, as the end of "must be ..."."""
    if "const" in node:
        return [json.dumps(node["const"])]
    if "enum" in node:
        return [json.dumps(one) for one in node["enum"]]
    match node.get("type"):
        case "null":
            return ["null"]
        case "boolean":
            return ["true or false"]
        case "integer":
            return ["an integer" + _range(node)]
        case "number":
            return ["a number" + _range(node)]
        case "string":
            return [text_of(node)]
        case "array":
            return ["a list" + _sizes(node, "items")]
        case _:
            return ["an object" + _sizes(node, "pairs")]


def _range(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    parts = []
    for key, words in (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    ):
        if key in node:
            parts.append(f"{words} {_number(node[key])}")
    return " " + ", ".join(parts) if parts else ""


def _number(value: float) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def text_of(node: Schema) -> str:
    """Say what a schema of texts allows."""
    if node.get("format") == "date-time":
        return "a time such as 2025-11-01T00:00:00Z"
    pattern = str(node.get("pattern", ""))
    if re.fullmatch(r"\^\([^()]+\)\$", pattern):
        return either([f'"{one}"' for one in pattern[2:-2].replace(r"\d{1,3}", "0").split("|")])
    if pattern:
        return "a job's id (26 letters and digits)" if _IS_ID in pattern else f"a text like {pattern}"
    return "a text" + _sizes(node, "characters", "Length")


def _sizes(node: Schema, unit: str, suffix: str = "") -> str:
    kind = suffix or ("Items" if unit == "items" else "Properties")
    low, high = node.get(f"min{kind}"), node.get(f"max{kind}")
    if low is not None and low == high:
        return f" of {low} {unit}"
    if low is not None and high is not None:
        return f" of {low} to {high} {unit}"
    if high is not None:
        return f" of at most {high} {unit}"
    return f" of at least {low} {unit}" if low is not None else ""


def either(texts: Iterable[str]) -> str:
    """Join alternatives, each named once."""
    return " or ".join(dict.fromkeys(texts))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Name the known name that was probably meant, else all of them."""
    close = difflib.get_close_matches(name[:64].lower(), known, n=1)
    if not close:
        bare = {other.replace("_", ""): other for other in known}
        close = [bare[match] for match in difflib.get_close_matches(_bare(name), list(bare), n=1)]
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known here: {', '.join(known)}." if known else "There are none here."


def _bare(name: str) -> str:
    return name[:64].lower().replace("_", "").replace("-", "")
