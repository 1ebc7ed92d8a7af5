"""When the waiting jobs may start, from speeds that were measured."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

Row = sa.Row[Any]


def starts(
    line: Sequence[Row],
    free_at: Sequence[datetime | None],
    speeds: Sequence[tuple[str, float]],
    *,
    skipped: Mapping[str, object],
) -> dict[str, datetime]:
    """Estimate the start of the jobs of a line, in its order, on slots that get free at `free_at`.

    speeds: (model, samples per second), the newest first. skipped: jobs that wait for something else.
    A slot whose end is unknown counts as never free. Validation and early stopping are not foreseen.
    """
    slots = [at for at in free_at if at is not None]
    heapq.heapify(slots)
    found: dict[str, datetime] = {}
    for row in line:
        if row.id in skipped:
            continue
        if not slots:
            break
        due = max((at for at in (row.not_before, row.run_after) if at is not None), default=None)
        if due is not None and due > slots[0]:
            found[row.id] = due  # others go first meanwhile
            continue
        found[row.id] = start = heapq.heappop(slots)
        length_s = duration_s(row, speeds)
        if length_s is not None:  # else nobody knows when this slot gets free
            heapq.heappush(slots, start + timedelta(seconds=length_s))
    return found


def duration_s(row: Row, speeds: Sequence[tuple[str, float]]) -> float | None:
    """Estimate how long a waiting job trains; null when nothing like it was ever measured."""
    if row.windows is None:
        return None
    speed = row.samples_per_s or next((speed for model, speed in speeds if model == row.model), None)
    if speed is None:
        return None
    epochs_left = row.max_epochs - max(0, (row.epoch or 1) - 1)
    return float(max(0, epochs_left) * row.windows / speed)
