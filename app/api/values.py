"""JSON values: pointers into them, and what no text or number of ours may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from app.errors import Problem, shown

MAX_POINTER = 128
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def child(pointer: str, key: str | int) -> str:
    """Point to an item (RFC 6901). A pointer too long to echo stays at what holds the item."""
    longer = f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
    is_shown = len(longer) <= MAX_POINTER and str(key) == shown(key)
    return longer if is_shown else pointer


def items(value: Any) -> Iterable[tuple[str | int, Any]]:
    """List what an object or an array holds with its key or place; nothing for anything else."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def key_problem(pointer: str, key: str, code: str, message: str, hint: str | None = None) -> Problem:
    """Say what is wrong with a key of the object at `pointer`."""
    return Problem(child(pointer, key), code, f"{shown(key)!r} {message}", hint)


def sound(value: Any, pointer: str = "") -> tuple[Any, list[Problem]]:
    """Return the value with null for what no field may hold, and a problem for each such place."""
    if isinstance(value, dict):
        return _sound_object(value, pointer)
    if isinstance(value, list):
        pairs = [sound(item, child(pointer, place)) for place, item in enumerate(value)]
        return [item for item, _ in pairs], [problem for _, problems in pairs for problem in problems]
    if isinstance(value, str):
        fault = _fault(value)
        return (None, [Problem(pointer, *fault)]) if fault else (value, [])
    if isinstance(value, float) and not math.isfinite(value):
        return None, [
            Problem(pointer, "not_finite", "must be a finite number", "NaN, Infinity and 1e400 are not.")
        ]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None, [Problem(pointer, "out_of_range", "must fit in 64 bits")]
    return value, []


def _sound_object(value: dict[str, Any], pointer: str) -> tuple[dict[str, Any], list[Problem]]:
    made: dict[str, Any] = {}
    problems: list[Problem] = []
    for key, item in value.items():
        if fault := _fault(key):
            problems.append(key_problem(pointer, key, fault[0], f"as a key: {fault[1]}"))
            continue
        made[key], found = sound(item, child(pointer, key))
        problems += found
    return made, problems


def _fault(text: str) -> tuple[str, str] | None:
    if _SURROGATE.search(text):
        return "invalid_unicode", "holds half of a surrogate pair, which is no character"
    if _CONTROL.search(text):
        return "control_character", "holds a control character"
    return None
