"""JSON merge patch (RFC 7396), as a job's config takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Sections that are one of several kinds. What a patch does not say about another kind is that kind's
# default: the leavings of the old one have no meaning there.
_KINDS = {
    ("model",): ("name",),
    ("loss",): ("name",),
    ("optimizer",): ("name",),
    ("schedule",): ("name",),
    ("data", "split"): ("val_from", "test_from"),
}


def merged(target: Any, patch: Any, path: tuple[str, ...] = ()) -> Any:
    """Return the target as the patch would have it: null removes a key, objects merge, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) and not _is_other_kind(target, patch, path) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merged(made.get(key), value, (*path, key))
    return made


def _is_other_kind(target: Mapping[str, Any], patch: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    if path == ("data", "split"):
        times = set(_KINDS[path])
        return bool(patch) and bool(times & set(target)) != bool(times & set(patch))
    tags = _KINDS.get(path, ())
    return any(patch.get(tag) is not None and patch[tag] != target.get(tag) for tag in tags)
