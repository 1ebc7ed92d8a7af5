"""Numbers, times and jobs as short text. A missing value is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

DASH = "–"
SHORT = 10  # characters of a job id: its time, to the millisecond
MARKS = {"succeeded": "✓", "failed": "✗", "cancelled": "✗", "running": "▶", "paused": "⏸", "queued": "…"}
STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def loss(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 0..1 as percent."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def gigabytes(used: int | None, total: int | None = None) -> str:
    """Bytes as GB of 2^30, as the training log writes them."""
    if used is None:
        return DASH
    return f"{used / 2**30:.1f} GB" + ("" if total is None else f" / {total / 2**30:.1f} GB")


def size(num_bytes: int) -> str:
    """The size of a file."""
    for unit, scale in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes} bytes"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def clock(text: str | None, now: datetime | None = None) -> str:
    """A time of the service on this machine's clock: the hour today, else the day with it."""
    if text is None:
        return DASH
    at = datetime.fromisoformat(text).astimezone()
    today = (now or datetime.now()).astimezone().date()
    return f"{at:%H:%M}" if at.date() == today else f"{at:%Y-%m-%d %H:%M}"


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """The shortest beginnings, all equally long, that tell these ids apart."""
    length = SHORT
    while len({job_id[:length] for job_id in ids}) < len(set(ids)):
        length += 1
    return {job_id: job_id[:length] for job_id in ids}


def status(job: Mapping[str, Any]) -> str:
    """The status, with the place in the queue."""
    position = (job.get("queue") or {}).get("position")
    return f"queued #{position}" if job["status"] == "queued" and position else str(job["status"])


def epoch(job: Mapping[str, Any]) -> str:
    progress = job.get("progress") or {}
    if progress.get("epoch") is None:
        return DASH
    return f"{progress['epoch']}/{progress['epochs'] or '?'}"


def best(job: Mapping[str, Any]) -> str:
    found = job.get("best")
    return f"{loss(found['val_loss'])} (e{found['epoch']})" if found and found.get("epoch") else DASH


def reason(job: Mapping[str, Any]) -> str:
    """Why the job is where it is, in a sentence; empty when there is nothing to say."""
    found = job.get("reason") or {}
    code = str(found.get("code") or "")
    if code in ("", "none"):
        return ""
    return str(found.get("message") or words(code))


def words(code: str) -> str:
    """A code as words."""
    return code.replace("_", " ")


def took(job: Mapping[str, Any], now: datetime | None = None) -> float | None:
    """Seconds from the start to the end, or until now."""
    if not job.get("started_at"):
        return None
    end = datetime.fromisoformat(job["finished_at"]) if job.get("finished_at") else now
    end = end or datetime.now().astimezone()
    return (end - datetime.fromisoformat(job["started_at"])).total_seconds()
