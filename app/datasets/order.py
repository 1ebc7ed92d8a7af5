"""Files in the order of their content: by first timestamp, whatever their names."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from app.datasets.errors import BadTimestamp, CorruptFile, check_deadline
from app.datasets.footers import Footer
from app.datasets.parquet import read_columns, read_first
from app.datasets.places import S3Path, each
from app.datasets.times import TimeUnit, detect_unit, raw_times
from app.errors import shown

MAX_GROUPS = 256  # beyond it the data are refused, later and by name

_Key = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Ordered:
    """Files in content order. unit: of the stored times; is_detected: guessed from plain integers."""

    footers: tuple[Footer, ...]
    unit: TimeUnit
    is_detected: bool


@dataclass(slots=True)
class _Times:
    """First and last time of a file, and of each group in it, as stored."""

    first: int
    last: int
    groups: dict[Any, tuple[int, int]] = field(default_factory=dict)


def order_by_time(
    footers: Sequence[Footer],
    timestamp: str,
    is_grouped: bool,
    deadline: float | None = None,
    *,
    group: str | None = None,
) -> Ordered:
    """Order non-empty files by (first time, last time, name), or as the groups in them demand.

    A group's rows are in time order when its files are: where that contradicts the order of the files' first
    times, the files are moved, as little as it takes. Groups that contradict one another leave the order
    as it was, and the scan names the files.
    is_grouped: a file may begin with a group that begins late; group: the column, to order by groups too.
    Reads the first row of each file; all of its times and groups where there are groups, all of its times
    where files begin together. Raises BadTimestamp when units are mixed, PreflightTimeout past `deadline`.
    """
    stored: TimeUnit | None = getattr(footers[0].types[timestamp], "unit", None)
    names = [footer.name for footer in footers]
    is_remote = isinstance(footers[0].path, S3Path)
    found_times = each(
        lambda footer: _times(footer, timestamp, is_grouped, group, deadline), footers, is_remote=is_remote
    )
    times = dict(zip(names, found_times, strict=True))
    units = {name: stored or detect_unit(found.first) for name, found in times.items()}
    unit = units[footers[0].name]
    for footer in footers:
        if units[footer.name] != unit:
            raise BadTimestamp(
                f"{shown(timestamp)!r} counts {unit} in {shown(footers[0].name)} but {units[footer.name]} in"
                f" {shown(footer.name)} ({times[footer.name].first}).",
                "Write all files in one unit; Arrow timestamps carry theirs.",
            )
    ties = Counter(found.first for found in times.values())
    keys: dict[str, _Key] = {}
    for footer in footers:
        found = times[footer.name]
        if not is_grouped and ties[found.first] > 1:
            found = _all_times(footer, timestamp, None, deadline)
        keys[footer.name] = found.first, found.last if ties[found.first] > 1 else found.first, footer.name
    by_name = {footer.name: footer for footer in footers}
    return Ordered(tuple(by_name[name] for name in _by_groups(times, keys)), unit, stored is None)


def _by_groups(times: Mapping[str, _Times], keys: Mapping[str, _Key]) -> list[str]:
    """The first order by key in which every group's files follow one another; by key where there is none."""
    files: dict[Any, list[tuple[int, int, _Key, str]]] = {}
    for name, found in times.items():
        for group, (first, last) in found.groups.items():
            files.setdefault(group, []).append((first, last, keys[name], name))
    after: dict[str, set[str]] = {name: set() for name in times}
    for held in files.values():
        for (*_, early), (*_, late) in pairwise(sorted(held)):
            after[early].add(late)
    waits_for = Counter(late for lates in after.values() for late in lates)
    ready = [keys[name] for name in times if not waits_for[name]]
    heapq.heapify(ready)
    ordered: list[str] = []
    while ready:
        *_, name = heapq.heappop(ready)
        ordered.append(name)
        for late in after[name]:
            waits_for[late] -= 1
            if not waits_for[late]:
                heapq.heappush(ready, keys[late])
    return ordered if len(ordered) == len(times) else sorted(times, key=lambda name: keys[name])


def _times(
    footer: Footer, timestamp: str, is_grouped: bool, group: str | None, deadline: float | None
) -> _Times:
    if is_grouped:
        return _all_times(footer, timestamp, group, deadline)
    check_deadline(deadline)
    array = read_first(footer.path, footer.name, timestamp, footer.row_groups)
    first = int(raw_times(array, timestamp, footer.name, 0)[0])
    return _Times(first, first)


def _all_times(footer: Footer, timestamp: str, group: str | None, deadline: float | None) -> _Times:
    columns = [timestamp] if group is None else [timestamp, group]
    whole: _Times | None = None
    for batch in read_columns(footer.path, footer.name, columns, deadline=deadline):
        times = raw_times(batch.columns[timestamp], timestamp, footer.name, batch.first_row)
        low, high = int(times.min()), int(times.max())
        whole = whole or _Times(low, high)
        whole.first, whole.last = min(whole.first, low), max(whole.last, high)
        if group is not None and len(whole.groups) <= MAX_GROUPS:
            _add_groups(whole, batch.columns[group], times)
    if whole is None:
        raise CorruptFile(f"{shown(footer.name)} has no rows where its footer claims {footer.rows:,}.")
    return whole


def _add_groups(whole: _Times, array: Any, times: Any) -> None:
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    codes = np.asarray(encoded.indices.cast(pa.int64()).fill_null(-1))
    order = np.argsort(codes, kind="stable")
    used, first = np.unique(codes[order], return_index=True)
    lows, highs = (at.reduceat(times[order], first) for at in (np.minimum, np.maximum))
    for code, low, high in zip(used[: MAX_GROUPS + 1], lows, highs, strict=False):
        value = encoded.dictionary[int(code)].as_py() if code >= 0 else None
        known = whole.groups.get(value, (int(low), int(high)))
        whole.groups[value] = min(known[0], int(low)), max(known[1], int(high))
