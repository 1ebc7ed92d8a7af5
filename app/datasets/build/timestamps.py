"""Timestamps as nanoseconds since 1970 UTC, whatever they came as."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from app.datasets.build.arrays import Ints, Numbers
from app.datasets.build.errors import BadTimestamp
from app.errors import shown

# Counts since 1970 of the years 1973 to 5138 (nanoseconds: to 2262) do not overlap between units.
_UNITS = (
    ("s", 1e8, 1e11, 10**9),
    ("ms", 1e11, 1e14, 10**6),
    ("us", 1e14, 1e17, 10**3),
    ("ns", 1e17, 2.0**63, 1),
)
_ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)$")


def unit_of(value: float) -> tuple[str, int] | None:
    """The unit of a count since 1970 and its nanoseconds, told from its size; None = no such unit."""
    return next(((name, ns) for name, low, high, ns in _UNITS if low <= value < high), None)


def to_nanoseconds(column: pa.Array, unit: tuple[str, int] | None, row_of: Callable[[int], str]) -> Ints:
    """Read one column without nulls as int64 nanoseconds since 1970 UTC; naive times are UTC.

    unit: of numbers, as the file's first value told; numbers of another size are refused.
    row_of: names a row for messages.
    Raises BadTimestamp with file, row and value.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _from_arrow(column, row_of)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(column.cast(pa.string()), row_of)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _from_numbers(column.to_numpy(zero_copy_only=False), unit, row_of)
    raise BadTimestamp(
        f"{row_of(0)}: a timestamp of type {kind}.",
        "Timestamps are text (ISO 8601), numbers since 1970 (s, ms, us or ns), or Arrow timestamps.",
    )


def _from_arrow(column: pa.Array, row_of: Callable[[int], str]) -> Ints:
    try:
        nanoseconds = column.cast(pa.timestamp("ns")) if pa.types.is_date(column.type) else column
        target = pa.timestamp("ns", tz=nanoseconds.type.tz)
        return _int64(nanoseconds.cast(target))
    except pa.ArrowInvalid as error:
        raise BadTimestamp(
            f"{row_of(0)} or a later row: {shown(error, 120)}", "Years 1678 to 2261 can be stored."
        ) from error


def _from_text(column: pa.Array, row_of: Callable[[int], str]) -> Ints:
    if not len(column):
        return np.empty(0, np.int64)
    first = column[0].as_py().strip()
    if "/" in first:
        column = pc.replace_substring(column, "/", "-")
    zone = "UTC" if _ZONE.search(first) and ":" in first else None
    try:
        return _int64(column.cast(pa.timestamp("ns", tz=zone)))
    except pa.ArrowInvalid as error:
        row = _first_bad_text(column, zone)
        raise BadTimestamp(
            f"{row_of(row)}: {shown(column[row].as_py())!r} is no time like the first, {shown(first)!r}.",
            "Write times as 2025-01-31 23:59:59.123456, all with a zone or all without (UTC).",
        ) from error


def _first_bad_text(column: pa.Array, zone: str | None) -> int:
    low, high = 0, len(column)  # bisect: the first row that does not parse is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            column.slice(low, middle - low).cast(pa.timestamp("ns", tz=zone))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def _from_numbers(values: Numbers, unit: tuple[str, int] | None, row_of: Callable[[int], str]) -> Ints:
    if not len(values):
        return np.empty(0, np.int64)
    if unit is None:
        raise BadTimestamp(
            f"{row_of(0)}: {values[0]} is no count of s, ms, us or ns since 1970.",
            "Name the right column with --timestamp-column.",
        )
    name, nanoseconds = unit
    low, high = next((low, high) for unit_name, low, high, _ in _UNITS if unit_name == name)
    bad = np.flatnonzero(~((values >= low) & (values < high)))
    if len(bad):
        row = int(bad[0])
        raise BadTimestamp(
            f"{row_of(row)}: {values[row]} is no time in {name}, the unit of the file's first row.",
            "One file has one unit.",
        )
    late = np.flatnonzero(values >= 2.0**63 / nanoseconds)
    if len(late):
        row = int(late[0])
        raise BadTimestamp(f"{row_of(row)}: {values[row]} {name} lies after the year 2261.")
    if np.issubdtype(values.dtype, np.floating):
        return np.rint(values.astype(np.float64) * nanoseconds).astype(np.int64)
    return values.astype(np.int64) * nanoseconds


def _int64(column: pa.Array) -> Ints:
    values: Ints = column.cast(pa.int64()).to_numpy()
    return values
