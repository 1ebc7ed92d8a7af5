"""A plan in words."""

from __future__ import annotations

from typing import Any

from app.cli.plan import plan_lines


def plan(**changes: Any) -> dict[str, Any]:
    part = {
        "rows": 1000,
        "windows": 900,
        "start": "2026-01-01T00:00:00.5Z",
        "end": "2026-01-02T03:04:05Z",
        "class_counts": [675, 225],
        "dropped": {"purged": 7, "embargoed": 0, "gap": 0, "non_finite": None},
    }
    return {
        "config": {
            "data": {"path": "btc", "window": 32, "classes": None},
            "model": {"name": "vivit"},
            "training": {"epochs": 15},
        },
        "classes": ["Down", "Up"],
        "warnings": [{"code": "x", "message": "Mind the gap."}],
        "model": {"parameters": 967_876},
        "splits": {"train": part, "val": {**part, "dropped": {}}, "test": None},
        "training": {"effective_batch": 15, "steps_per_epoch": 60},
        **changes,
    }


def test_a_plan_is_told_in_full() -> None:
    assert list(plan_lines(plan())) == [
        "data    btc, windows of 32 rows",
        "train           900 windows of 1,000 rows, 7 dropped, 2026-01-01 00:00:00 to 2026-01-02 03:04:05",
        "val             900 windows of 1,000 rows, 2026-01-01 00:00:00 to 2026-01-02 03:04:05",
        "train   Down 675 (75%), Up 225 (25%)",
        "val     Down 675 (75%), Up 225 (25%)",
        "model   vivit, 967,876 parameters",
        "epoch   60 steps of 15 samples",
        "epochs  at most 15",
        "warning Mind the gap.",
    ]


def test_what_is_not_known_yet_is_left_out() -> None:
    unknown = plan(
        splits=None,
        classes=None,
        model={"parameters": None},
        training={"effective_batch": 15, "steps_per_epoch": None},
        warnings=[],
    )
    assert list(plan_lines(unknown)) == [
        "data    btc, windows of 32 rows",
        "model   vivit",
        "epoch   steps of 15 samples",
        "epochs  at most 15",
    ]
