"""Leaks that times and names of files tell: labels known too early, parts inside one another."""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.datasets.audit.collect import Collected
from app.datasets.audit.findings import Finding
from app.datasets.split import SplitPlan
from app.errors import shown

_HELD_OUT = re.compile(
    r"(?:^|[^a-z])(val|valid|validation|test|testing|holdout|hold_out|oos|eval)(?:[^a-z]|$)"
)


def find_early_ends(found: Collected) -> Iterator[Finding]:
    """Report label ends before their own row: then the purge keeps windows whose label is not known yet."""
    early = found.early_ends
    if early.rows:
        yield Finding(
            "label_end_before_row",
            "leak",
            f"{early.rows:,} of {found.num_rows:,} rows have a label_end before their own time"
            f" ({early.where}), so the purge cannot see how far their labels look ahead.",
            "Correct the unit or time zone of label_end, or drop the column and set data.horizon_s.",
            {"rows": early.rows, "of": found.num_rows},
        )


def find_misplaced_files(found: Collected, plan: SplitPlan, path: str) -> Iterator[Finding]:
    """Report files called val, test or holdout whose rows train the model.

    The split is by time over all files and groups; a file's name has no part in it, and a split that was
    made by file or by group leaves times of one part inside another.
    """
    below = path.rstrip("/")
    for name in sorted({name for name, _ in found.part_rows}):
        match = _HELD_OUT.search(name.removeprefix(below).lower())
        if match is None:
            continue
        allowed = 2 if match[1].startswith(("test", "hold", "oos")) and len(plan.parts) > 2 else 1
        inside = {part: found.part_rows[name, part] for part in range(allowed)}
        if rows := sum(inside.values()):
            parts = " and ".join(list(plan.parts)[part] for part, num in inside.items() if num)
            yield Finding(
                "held_out_file_in_training",
                "suspect",
                f"{shown(name)} is named as held-out data, but {rows:,} of its rows lie in the {parts} split"
                " by time: its times lie inside another part's.",
                "Set data.split to the times where validation and test begin, or give data.path the"
                " training files only.",
                {"file": shown(name), "rows": rows, "of": sum(found.part_rows[name, p] for p in range(3))},
            )
