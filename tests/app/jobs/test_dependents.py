"""Jobs that fall with the one they depend on: how deep, how many and whatever interrupts it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import sqlalchemy as sa

from app.db import Database, connect
from app.errors import StorageUnavailable
from app.jobs.queue import JobInUse, Queue, Reason
from app.jobs.queue.door import BATCH
from app.jobs.states import Status
from app.jobs.tables import dependency, event, job
from tests.factories import OWNER, SLOT, make_request
from tests.postgres.engines import MakeQueue
from tests.postgres.server import url_of

MANY = 10_000
DIVERGED = Reason("diverged", "The loss is not finite.")


def add(queue: Queue, needs: Mapping[str, Sequence[str]]) -> None:
    """Put many waiting jobs into the queue, by id, with what each needs: faster than to submit them."""
    template = dict(queue.submit(make_request())[0]._mapping)
    with queue.database.writing() as connection:
        connection.execute(job.delete().where(job.c.id == template["id"]))
        connection.execute(job.insert(), [{**template, "id": job_id} for job_id in needs])
        edges = [{"job_id": job_id, "needs_id": one} for job_id in needs for one in needs[job_id]]
        connection.execute(dependency.insert(), edges)


def ids(count: int) -> list[str]:
    return [f"{number:026d}" for number in range(count)]


def shaped(shape: str, count: int) -> dict[str, list[str]]:
    """Name `count` jobs below a root, as a chain or as a fan."""
    root, *rest = ids(count + 1)
    before = [root, *rest] if shape == "a chain" else itertools.repeat(root)
    return {root: [], **{one: [needed] for one, needed in zip(rest, before, strict=False)}}


def told(queue: Queue) -> dict[str, tuple[str, str | None, str | None]]:
    """What became of each job: (status, reason code, reason message)."""
    with queue.database.reading() as connection:
        rows = connection.execute(sa.select(job.c.id, job.c.status, job.c.reason_code, job.c.reason_message))
        return {row.id: (row.status, row.reason_code, row.reason_message) for row in rows}


def finished(queue: Queue) -> list[tuple[str, int, dict[str, str]]]:
    with queue.database.reading() as connection:
        rows = connection.execute(sa.select(event).where(event.c.kind == "finished").order_by(event.c.job_id))
        return [(row.job_id, row.seq, row.data) for row in rows]


def because_of(job_id: str) -> tuple[str, str, str]:
    message = f"Job {job_id}, which this one depends on, did not succeed."
    return (Status.CANCELLED, "dependency_failed", message)


def fail_the_next(queue: Queue) -> str:
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    queue.finish(taken.job_id, taken.attempt, DIVERGED)
    return taken.job_id


@contextmanager
def commits(queue: Queue) -> Iterator[list[int]]:
    """Count, by commit, the events that were written."""
    counted: list[int] = []
    seen = [0]

    def count(connection: sa.Connection) -> None:
        before, seen[0] = (
            seen[0],
            connection.execute(sa.select(sa.func.count()).select_from(event)).scalar_one(),
        )
        counted.append(seen[0] - before)

    sa.event.listen(queue.database.write_engine, "commit", count)
    try:
        yield counted
    finally:
        sa.event.remove(queue.database.write_engine, "commit", count)


@pytest.mark.parametrize(("shape", "ends"), [("a chain", "failed"), ("a fan", "cancelled")])
def test_ten_thousand_fall_with_their_root(make_queue: MakeQueue, shape: str, ends: str) -> None:
    queue = make_queue()
    is_sqlite = queue.database.file is not None
    needs = shaped(shape, MANY if is_sqlite else 3 * BATCH)  # the same statements
    add(queue, needs)
    root = next(iter(needs))
    if ends == "cancelled":
        assert queue.cancel(root)[1]
    else:
        assert fail_the_next(queue) == root
    found = told(queue)
    assert found.pop(root)[0] == ends
    assert found == {one: because_of(needed) for one, (needed,) in list(needs.items())[1:]}
    assert [(one, seq, data["message"]) for one, seq, data in finished(queue)[1:]] == [
        (one, 2, found[one][2]) for one in sorted(found)
    ]
    assert queue.claim(OWNER, SLOT) is None


def test_others_write_while_many_fall(make_queue: MakeQueue) -> None:
    queue = make_queue()
    add(queue, shaped("a fan", 4 * BATCH))
    with commits(queue) as counted:
        queue.cancel(ids(1)[0])
    assert max(counted) <= BATCH + 1
    assert sum(counted) == 4 * BATCH + 1


def test_few_fall_in_the_transaction_of_their_root(make_queue: MakeQueue) -> None:
    queue = make_queue()
    add(queue, shaped("a chain", 3))
    with commits(queue) as counted:
        queue.cancel(ids(1)[0])
    assert [count for count in counted if count] == [4]


def recursion(needs: Mapping[str, Sequence[str]], root: str) -> dict[str, str]:
    """Say with whom each falls, as a plain recursion finds it."""
    found: dict[str, str] = {}

    def fall(lost: str) -> None:
        for one in sorted(one for one, needed in needs.items() if lost in needed):
            if one not in found and one != root:
                found[one] = lost
                fall(one)

    fall(root)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_who_waits_for_several_falls_with_the_first_of_a_walk_into_the_depth(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Also when another process goes on with it."""
    queue = make_queue()
    draw = random.Random(seed)
    names = ids(60)
    needs = {
        one: sorted(draw.sample(names[:at], min(at, draw.randint(0, 3)))) for at, one in enumerate(names)
    }
    add(queue, needs)
    other = Queue(connect(url_of(queue.database)), queue.now)
    with monkeypatch.context() as changed:
        changed.setattr("app.jobs.queue.door.BATCH", 7)
        cut_off(queue, changed)
        queue.cancel(names[0])
    other.cancel_dependents()
    expected = {one: because_of(lost) for one, lost in recursion(needs, names[0]).items()}
    assert len(expected) > 20, "the draw is worth something"
    found = told(queue)
    assert {one: found[one] for one in expected} == expected
    assert all(found[one][0] == Status.QUEUED for one in set(names[1:]) - set(expected))
    other.database.dispose()


def cut_off(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the database go away whenever there is a batch of dependents to write."""
    writing = type(queue.database).writing

    def but_batches(self: Database, verb: str | None = None) -> AbstractContextManager[sa.Connection]:
        if verb is None:  # it has no failpoint: no rig has so many jobs
            raise StorageUnavailable("The database did not answer.")
        return writing(self, verb)

    monkeypatch.setattr(type(queue.database), "writing", but_batches)


def test_who_was_not_reached_is_never_started_and_found_by_who_looks_next(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue()
    needs = shaped("a fan", 2 * BATCH)
    add(queue, needs)
    cut_off(queue, monkeypatch)
    queue.cancel(ids(1)[0])  # which is done, whatever becomes of the rest
    monkeypatch.undo()
    left = [one for one, (status, _, _) in told(queue).items() if status == Status.QUEUED]
    assert len(left) == BATCH
    assert queue.claim(OWNER, SLOT) is None
    assert queue.pause(left[0])[1]
    assert queue.resume(left[0])[1]
    assert queue.claim(OWNER, SLOT) is None
    queue.cancel_dependents()
    found = told(queue)
    assert {found[one] for one in left} == {because_of(ids(1)[0])}


def test_a_lost_job_is_not_deleted_before_all_have_fallen(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that were not reached would depend on nothing, and start."""
    queue = make_queue()
    root = ids(1)[0]
    add(queue, shaped("a fan", 2 * BATCH))
    cut_off(queue, monkeypatch)
    queue.cancel(root)
    with pytest.raises(JobInUse):
        queue.delete(root)
    monkeypatch.undo()
    queue.delete(root)
    assert {code for _, code, _ in told(queue).values()} == {"dependency_failed"}


def test_who_depends_on_a_success_is_left_alone(make_queue: MakeQueue) -> None:
    queue = make_queue()
    add(queue, shaped("a chain", 2))
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    queue.finish(taken.job_id, taken.attempt, Reason("completed", "All epochs are done."))
    queue.cancel_dependents(taken.job_id)
    queue.cancel_dependents()
    assert [told(queue)[one][0] for one in ids(3)] == ["succeeded", "queued", "queued"]
