"""Timestamps: every form they come in, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from app.datasets.build.errors import BadTimestamp
from app.datasets.build.timestamps import to_nanoseconds, unit_of

NOON_NS = 1_735_732_800_000_000_000  # 2025-01-01T12:00:00Z


def read(values: pa.Array) -> list[int]:
    first = values[0].as_py()
    unit = unit_of(first) if isinstance(first, int | float) else None
    found: list[int] = to_nanoseconds(values, unit, lambda row: f"trades.csv, row {row + 1}").tolist()
    return found


@pytest.mark.parametrize(
    "value",
    [
        pa.array([NOON_NS // 10**9]),
        pa.array([NOON_NS // 10**6]),
        pa.array([NOON_NS // 10**3]),
        pa.array([NOON_NS]),
        pa.array([NOON_NS / 1e9]),
        pa.array([NOON_NS // 10**9], pa.uint32()),
        pa.array(["2025-01-01 12:00:00"]),
        pa.array(["2025-01-01T12:00:00.000000"]),
        pa.array(["2025-01-01T12:00:00Z"]),
        pa.array(["2025-01-01 14:00:00.000+02:00"]),
        pa.array(["2025/01/01 12:00:00.000"]),
        pa.array(["2025-01-01 12:00:00"], pa.large_string()),
        pa.array([NOON_NS // 10**9]).cast(pa.timestamp("s")),
        pa.array([NOON_NS // 10**3]).cast(pa.timestamp("us", tz="America/New_York")),
        pa.array([NOON_NS]).cast(pa.timestamp("ns", tz="UTC")),
    ],
    ids=lambda value: f"{value.type}-{value[0]}",
)
def test_noon_is_understood(value: pa.Array) -> None:
    assert read(value) == [NOON_NS]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([7, 8]), "row 1: 7 is no count"),
        (pa.array([-5]), "row 1: -5 is no count"),
        (pa.array([1_735_732_800, 1_735_732_800_000]), "row 2: 1735732800000 is no time in s"),
        (pa.array([1_735_732_800.0, float("nan")]), "row 2: nan is no time in s"),
        (pa.array([99_000_000_000]), "row 1: 99000000000 s lies after the year 2261"),
        (pa.array(["2025-01-01 12:00:00", "soon"]), "row 2: 'soon' is no time"),
        (
            pa.array(["2025-01-01 12:00:00", "2025-01-01 12:00:00Z"]),
            "row 2: '2025-01-01 12:00:00Z' is no time",
        ),
        (pa.array([True]), "a timestamp of type bool"),
        (pa.array([10**10]).cast(pa.timestamp("s")), "row 1 or a later row"),
    ],
    ids=[
        "row numbers",
        "negative",
        "two units",
        "nan",
        "far future",
        "text",
        "mixed zones",
        "type",
        "overflow",
    ],
)
def test_bad_timestamp_is_named_with_its_row(values: pa.Array, message: str) -> None:
    with pytest.raises(BadTimestamp) as caught:
        read(values)
    assert message in caught.value.message
