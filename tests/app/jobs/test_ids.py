"""Job ids."""

from __future__ import annotations

import re

from app.jobs.ids import new_id


def test_ids_sort_by_the_time_they_were_made() -> None:
    ids = [new_id() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", job_id) for job_id in ids)
