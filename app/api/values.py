"""JSON values: pointers into them, and what no text or number of ours may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import reduce
from typing import Any

from app.errors import MAX_PROBLEMS, Problem, shown

MAX_POINTER = 128
# From the top of a value. Most values are sound, so a pointer is only made for one that is not.
Path = tuple[str | int, ...]

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def child(pointer: str, key: str | int) -> str:
    """Point to an item (RFC 6901). A pointer too long to echo stays at what holds the item."""
    longer = f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
    is_shown = len(longer) <= MAX_POINTER and str(key) == shown(key)
    return longer if is_shown else pointer


def pointer_to(path: Iterable[str | int]) -> str:
    """Point to what lies at the end of a path, as `child` does."""
    return reduce(child, path, "")


def items(value: Any) -> Iterable[tuple[str | int, Any]]:
    """List what an object or an array holds with its key or place; nothing for anything else."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def key_problem(pointer: str, key: str, code: str, message: str, hint: str | None = None) -> Problem:
    """Say what is wrong with a key of the object at `pointer`."""
    return Problem(child(pointer, key), code, f"{shown(key)!r} {message}", hint)


def sound(value: Any) -> tuple[Any, list[Problem]]:
    """Return the value with null for what no field may hold, and a problem for each such place.

    Keys of that kind are left out. Of many problems the first ones are named.
    """
    problems: list[Problem] = []
    return _sound(value, (), problems), problems


def _sound(value: Any, path: Path, problems: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {
            key: _sound(item, (*path, key), problems)
            for key, item in value.items()
            if not _is_faulty_key(key, path, problems)
        }
    if isinstance(value, list):
        return [_sound(item, (*path, place), problems) for place, item in enumerate(value)]
    fault = _fault(value)
    if fault is None:
        return value
    _note(problems, Problem(pointer_to(path), *fault))
    return None


def _is_faulty_key(key: str, path: Path, problems: list[Problem]) -> bool:
    fault = _text_fault(key)
    if fault is not None:
        _note(problems, key_problem(pointer_to(path), key, fault[0], f"as a key: {fault[1]}"))
    return fault is not None


def _note(problems: list[Problem], problem: Problem) -> None:
    if len(problems) <= MAX_PROBLEMS:
        problems.append(problem)


def _fault(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "not_finite", "must be a finite number", "NaN, Infinity and 1e400 are not."
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "out_of_range", "must fit in 64 bits"
    return None


def _text_fault(text: str) -> tuple[str, str] | None:
    if _SURROGATE.search(text):
        return "invalid_unicode", "holds half of a surrogate pair, which is no character"
    if _CONTROL.search(text):
        return "control_character", "holds a control character"
    return None
