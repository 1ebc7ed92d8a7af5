"""Times as integers: nanoseconds since 1970-01-01 UTC, exact, from whatever a file stores."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.datasets.errors import BadTimestamp
from app.errors import shown

TimeUnit = Literal["s", "ms", "us", "ns"]
Times = NDArray[np.int64]

UNIT_NS: dict[TimeUnit, int] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
MAX_NS = 2**63 - 1  # 2262-04-11


def detect_unit(value: int) -> TimeUnit:
    """Guess the unit of an integer time; each covers 1973 to 5138, seconds from 1970 on."""
    size = abs(value)
    if size < 10**11:
        return "s"
    if size < 10**14:
        return "ms"
    return "us" if size < 10**17 else "ns"


def raw_times(array: Any, column: str, file: str, first_row: int) -> Times:
    """Read an Arrow array of times as the integers it stores. Raises BadTimestamp for a null."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        row = first_row + int(pc.index(array.is_null(), pa.scalar(True)).as_py())
        raise BadTimestamp(
            f"{shown(file)}, row {row}: {shown(column)!r} is missing.", "Drop or fill rows without a time."
        )
    try:
        return np.asarray(array.cast(pa.int64()))
    except pa.ArrowInvalid as error:  # unsigned beyond 2^63
        raise BadTimestamp(f"{shown(file)}: {shown(column)!r} holds values beyond 2^63.") from error


def as_ns(raw: Times, unit: TimeUnit, column: str, file: str, first_row: int, *, is_detected: bool) -> Times:
    """Turn stored integers into nanoseconds.

    is_detected: `unit` was guessed from plain integers, so all of them must look like it.
    Raises BadTimestamp naming the first row before 1970, after 2262, or of another unit.
    """
    low, high = int(raw.min()), int(raw.max())
    where = f"{shown(file)}, row {{}}: {shown(column)!r} is {{}}"
    if low < 0:
        row = int(np.argmax(raw < 0))
        raise BadTimestamp(
            where.format(first_row + row, int(raw[row])) + ", before 1970.",
            "Times count from 1970-01-01 UTC.",
        )
    if is_detected and (detect_unit(low) != unit or detect_unit(high) != unit):
        other = high if detect_unit(high) != unit else low
        row = int(np.argmax(raw == other))
        raise BadTimestamp(
            where.format(first_row + row, other)
            + f", which looks like {detect_unit(other)}; others are {unit}.",
            "Write all times in one unit, or as Arrow timestamps, which carry theirs.",
        )
    if high > MAX_NS // UNIT_NS[unit]:
        row = int(np.argmax(raw > MAX_NS // UNIT_NS[unit]))
        raise BadTimestamp(
            where.format(first_row + row, f"{int(raw[row])} {unit}") + ", after the year 2262.",
            "Nanoseconds in 64 bits end there; such a time is mostly a wrong unit.",
        )
    return raw if unit == "ns" else raw * UNIT_NS[unit]


def floor_ns(seconds: float) -> int:
    """Nanoseconds of a decimal number of seconds as written, rounded down."""
    return math.floor(Fraction(repr(seconds)) * 10**9)


def ceil_ns(seconds: float) -> int:
    """Nanoseconds of a decimal number of seconds as written, rounded up."""
    return math.ceil(Fraction(repr(seconds)) * 10**9)


def instant_ns(moment: datetime) -> int:
    """Nanoseconds of an aware datetime, exact."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86400 + since.seconds) * 10**6 + since.microseconds) * 1000


def rfc3339(ns: int) -> str:
    """Write an instant as RFC 3339 in UTC, without trailing zeros of the fraction."""
    seconds, _, fraction = str(np.datetime_as_string(np.datetime64(ns, "ns"), unit="ns")).partition(".")
    fraction = fraction.rstrip("0")
    return f"{seconds}.{fraction}Z" if fraction else f"{seconds}Z"
