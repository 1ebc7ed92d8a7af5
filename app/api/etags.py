"""Conditional requests: If-None-Match and 304."""

from __future__ import annotations

from starlette.responses import Response


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match header names this ETag (or *). Weak comparison, as RFC 9110 says."""
    if header is None:
        return False
    listed = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" in listed or etag.removeprefix("W/") in listed


def not_modified(etag: str) -> Response:
    """Answer that the client's copy is still right."""
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": "no-cache"})
