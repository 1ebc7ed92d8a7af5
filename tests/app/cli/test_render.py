"""Numbers and times as a person reads them."""

from __future__ import annotations

from datetime import datetime

import pytest

from app.cli import render


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (83, "1 min 23 s"),
        (3900, "1 h 05 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert render.duration(seconds) == text


def test_gigabytes_are_those_of_the_log() -> None:
    assert render.gigabytes(int(12.5 * 2**30), 32 * 2**30) == "12.5 GB / 32.0 GB"
    assert render.gigabytes(None, 1) == "–"


def test_sizes() -> None:
    assert [render.size(n) for n in (12, 2048, 3_900_000, 2**31)] == [
        "12 bytes",
        "2.0 KB",
        "3.7 MB",
        "2.0 GB",
    ]


def test_short_ids_tell_jobs_apart() -> None:
    same_moment = ["01M84200KAP2K3MRRRT24N6S6M", "01M84200KAQ2K3MRRRT24N6S7X"]
    assert list(render.short_ids(same_moment).values()) == ["01M84200KAP", "01M84200KAQ"]
    assert render.short_ids(["01M84200KAP2K3MRRRT24N6S6M"] * 2) == {
        "01M84200KAP2K3MRRRT24N6S6M": "01M84200KA"
    }


def test_a_time_of_today_is_its_hour() -> None:
    now = datetime(2026, 1, 2, 12, 0).astimezone()
    assert render.clock(datetime(2026, 1, 2, 9, 5).astimezone().isoformat(), now) == "09:05"
    assert render.clock(datetime(2026, 1, 1, 9, 5).astimezone().isoformat(), now) == "2026-01-01 09:05"
