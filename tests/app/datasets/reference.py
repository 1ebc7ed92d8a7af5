"""The split, one row at a time in plain Python, as the contract words it: what the real one must equal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor

from app.jobs.config import DataConfig, FractionSplit
from tests.app.datasets.make import Row

SECOND = 10**9


@dataclass
class Part:
    rows: int = 0
    used: list[tuple[str | int, int]] = field(default_factory=list)  # (group, last row)
    dropped: dict[str, int] = field(default_factory=lambda: {"purged": 0, "embargoed": 0, "gap": 0})
    labels: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)


def in_order(files: dict[str, list[Row]]) -> list[Row]:
    """All rows, files by first time, then last, then name."""

    def key(name: str) -> tuple[int, int, str]:
        times = [row.time for row in files[name]]
        return min(times), max(times), f"set/{name}.parquet"

    return [row for name in sorted(files, key=key) for row in files[name]]


def by_group(rows: list[Row]) -> dict[str | int, list[Row]]:
    groups: dict[str | int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def cuts(rows: list[Row], data: DataConfig) -> tuple[list[str], list[int | None]]:
    """The parts that exist and the first row time of each after train (null: no row is left)."""
    times = sorted(row.time for row in rows)
    split = data.split
    if isinstance(split, FractionSplit):
        train, val = Decimal(str(split.train)), Decimal(str(split.val))
        places = [floor(train * len(times))]
        if split.test > 0:
            places.append(floor((train + val) * len(times)))
        found: list[int | None] = []
        for place in places:
            while 0 < place < len(times) and times[place] == times[place - 1]:
                place += 1
            found.append(times[place] if place < len(times) else None)
    else:
        found = [
            min((time for time in times if time >= nanoseconds(at)), default=None)
            for at in (split.val_from, split.test_from)
            if at is not None
        ]
    return ["train", "val", "test"][: len(found) + 1], found


def nanoseconds(at: datetime) -> int:
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * SECOND + since.microseconds * 1000


def exact_ns(seconds: float) -> Fraction:
    return Fraction(Decimal(str(seconds))) * SECOND


def label_end(row: Row, data: DataConfig) -> Fraction:
    """The later of the label_end column and the horizon."""
    return max(row.time + exact_ns(data.horizon_s or 0.0), Fraction(row.end if row.end is not None else 0))


def plan(rows: list[Row], data: DataConfig) -> dict[str, Part]:
    names, starts = cuts(rows, data)
    never = 2**63
    begins = [0, *(never if start is None else start for start in starts)]
    ends = [*begins[1:], never]
    parts = {name: Part() for name in names}

    def part_of(row: Row) -> int:
        return max(k for k, begin in enumerate(begins) if row.time >= begin)

    for row in rows:
        parts[names[part_of(row)]].rows += 1
    for group, series in by_group(rows).items():
        for i in range(data.window - 1, len(series), data.stride):
            window, last = series[i - data.window + 1 : i + 1], series[i]
            k = part_of(last)
            part = parts[names[k]]
            has_next = k + 1 < len(names)
            late = has_next and (label_end(last, data) >= ends[k] or any(r.time >= ends[k] for r in window))
            early = k > 0 and any(r.time < begins[k] + exact_ns(data.embargo_s) for r in window)
            gap = data.max_gap_s is not None and any(
                b.time - a.time > exact_ns(data.max_gap_s) for a, b in pairwise(window)
            )
            reason = "purged" if late else "embargoed" if early else "gap" if gap else None
            if reason:
                part.dropped[reason] += 1
            else:
                part.used.append((group, i))
                part.labels.append(last.label)
                part.times += [row.time for row in window]
    return parts
