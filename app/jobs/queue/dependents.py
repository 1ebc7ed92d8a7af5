"""Who falls with a job that did not succeed: the jobs that wait for it, those that wait for them, and so on.

The order is that of a walk into the depth, by id, and who falls names the job it was reached from. It is
found anew from the rows each time, through those that have fallen already: so a walk that was cut off goes on
as it would have. Look-ups by key, many at a time: a recursive query may be planned badly by either engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from app.jobs.states import FINAL, Status
from app.jobs.tables import dependency, job

FALLEN = "dependency_failed"
WAITING = (Status.QUEUED, Status.PAUSED)
LOOK_UP = 500  # jobs in one query

_LOST = tuple(sorted(FINAL - {Status.SUCCEEDED}))
_NEEDED = job.alias("needed")
# Made once: to make a statement costs more than to execute it.
_IS_LOST = sa.select(job.c.id).where(job.c.id == sa.bindparam("lost_id"), job.c.status.in_(_LOST))
# Those with somebody left to reach lie on the way to where the walk was cut off: the deepest comes first.
_ALL_LOST = (
    sa.select(_NEEDED.c.id)
    .where(_NEEDED.c.status.in_(_LOST))
    .where(
        sa.exists()
        .where(dependency.c.needs_id == _NEEDED.c.id, dependency.c.job_id == job.c.id)
        .where(job.c.status.in_(WAITING))
    )
    .order_by(_NEEDED.c.finished_at.desc(), _NEEDED.c.id.desc())
)
_BELOW = (
    sa.select(dependency.c.needs_id, dependency.c.job_id, job.c.status)
    .join(job, job.c.id == dependency.c.job_id)
    .where(job.c.status.in_(WAITING) | (job.c.reason_code == FALLEN))
    .order_by(dependency.c.job_id)
)
_BELOW_MANY = _BELOW.where(dependency.c.needs_id.in_(sa.bindparam("ids", expanding=True)))
_BELOW_ONE = _BELOW.where(dependency.c.needs_id == sa.bindparam("of_id"))  # a chain has nothing else


class Falling(NamedTuple):
    """A job that waits for nothing that could still come. because_of: the job that was to succeed first."""

    job_id: str
    because_of: str


def falling(connection: sa.Connection, lost_id: str | None = None) -> Iterator[Falling]:
    """List the waiting jobs that fall with a job, in their order; of one that may yet succeed none.

    lost_id: null = of all jobs that did not succeed. Nothing is looked up beyond what is taken.
    """
    if lost_id is None:
        roots = connection.execute(_ALL_LOST).scalars().all()
    else:
        roots = connection.execute(_IS_LOST, {"lost_id": lost_id}).scalars().all()
    ahead: list[tuple[str, str | None]] = [(root, None) for root in reversed(roots)]
    below: dict[str, list[str]] = {}
    waiting: set[str] = set()
    seen: set[str] = set()
    while ahead:
        job_id, because_of = ahead.pop()
        if job_id in seen:
            continue
        seen.add(job_id)
        if job_id in waiting and because_of is not None:
            yield Falling(job_id, because_of)
        if job_id not in below:
            following = (one for one, _ in ahead[:-LOOK_UP:-1] if one not in below)
            waiting |= _look_up(connection, [job_id, *dict.fromkeys(following)], below)
        ahead.extend((one, job_id) for one in reversed(below[job_id]))


def _look_up(connection: sa.Connection, ids: Sequence[str], below: dict[str, list[str]]) -> set[str]:
    """Find who depends on these jobs, as far as they wait or have fallen; return those that wait."""
    below.update({one: [] for one in ids})
    if len(ids) == 1:
        found = connection.execute(_BELOW_ONE, {"of_id": ids[0]}).all()
    else:
        found = connection.execute(_BELOW_MANY, {"ids": ids}).all()
    for needs_id, job_id, _ in found:
        below[needs_id].append(job_id)
    return {job_id for _, job_id, status in found if status in WAITING}
