"""JSON out: times as RFC 3339 in UTC, what is not finite as null."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse


class Json(JSONResponse):
    """A response that writes times and unfinite numbers the way the contract says."""

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(content: Any) -> bytes:
    """Write a value of dicts, lists, numbers, texts and times as JSON."""
    try:
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # not finite somewhere: rare, so only then is everything walked
        text = json.dumps(_finite(content), separators=(",", ":"), ensure_ascii=False, default=_plain)
    return text.encode()


def time_text(at: datetime) -> str:
    """Write a time as RFC 3339 in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return time_text(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
