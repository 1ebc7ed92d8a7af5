"""The queue against a model of it, by sequences of verbs that Hypothesis makes up, on both engines.

After every verb: one running job a slot, tokens that only grow, ends that are final, no job missing, the
order as the model has it, events only appended, and every status, budget and place as in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.db import Database
from app.errors import ServiceError
from app.jobs.queue import BACKOFF_S, Facts, LostJob, Queue, Reason
from app.jobs.queue.door import in_turn
from app.jobs.states import FINAL, Status
from app.jobs.tables import event, gate, job
from tests.factories import OWNER, Clock, make_request

MAX_ATTEMPTS = 2
SLOTS = ("box/0", "box/1", "box/2")
LIVE = (Status.QUEUED, Status.PAUSED, Status.RUNNING)
SEEN = ("id", "status", "attempt", "crashes", "priority", "slot", "run_after", "reason_code")
MAX_JOBS = 6  # few, so that they meet
PICK = st.integers(0, 14)
Token = tuple[str, int]


@dataclass
class Job:
    """What the model knows of a job."""

    priority: int
    place: Fraction
    needs: frozenset[str]
    not_before: datetime | None
    status: Status = Status.QUEUED
    attempt: int = 0
    crashes: int = 0
    slot: str | None = None
    run_after: datetime | None = None
    is_cancel_asked: bool = False
    is_pause_asked: bool = False
    has_saved: bool = False  # in this attempt


@dataclass
class Model:
    """The queue, in memory: the same verbs, none of the SQL."""

    now: Callable[[], datetime]
    jobs: dict[str, Job] = field(default_factory=dict)
    is_drained: bool = False
    is_preempting: bool = False
    last_place: Fraction = Fraction(0)

    def line(self) -> list[str]:
        queued = [(job_id, job) for job_id, job in self.jobs.items() if job.status == Status.QUEUED]
        return [job_id for job_id, _ in sorted(queued, key=lambda one: (-one[1].priority, -one[1].place))]

    def next(self) -> str | None:
        due = (job_id for job_id in self.line() if self._is_due(self.jobs[job_id]))
        return None if self.is_drained else next(due, None)

    def _is_due(self, job: Job) -> bool:
        times = [at for at in (job.run_after, job.not_before) if at is not None]
        met = all(needs not in self.jobs or self.status(needs) == Status.SUCCEEDED for needs in job.needs)
        return met and all(at <= self.now() for at in times)

    def status(self, job_id: str) -> Status:
        return self.jobs[job_id].status

    @property
    def holders(self) -> list[str]:
        return [job_id for job_id, job in self.jobs.items() if job.slot is not None]

    def holds(self, token: Token) -> bool:
        job = self.jobs.get(token[0])
        return job is not None and (job.status, job.attempt) == (Status.RUNNING, token[1])

    def leave(self, job_id: str, to: Status, run_after: datetime | None = None) -> None:
        job = self.jobs[job_id]
        job.status, job.slot, job.is_pause_asked, job.run_after = to, None, False, run_after
        if to in FINAL and to != Status.SUCCEEDED:
            for other_id, other in self.jobs.items():
                if job_id in other.needs and other.status in (Status.QUEUED, Status.PAUSED):
                    self.leave(other_id, Status.CANCELLED)

    def stop(self, job_id: str, otherwise: Status, run_after: datetime | None = None) -> None:
        job = self.jobs[job_id]
        if job.is_cancel_asked:
            self.leave(job_id, Status.CANCELLED)
        elif job.is_pause_asked:
            self.leave(job_id, Status.PAUSED)
        else:
            self.leave(job_id, otherwise, run_after)

    def crash(self, job_id: str) -> None:
        job = self.jobs[job_id]
        job.crashes = 0 if job.has_saved else job.crashes + 1
        if job.crashes >= MAX_ATTEMPTS and not job.is_cancel_asked:
            self.leave(job_id, Status.FAILED)
            return
        wait_s = BACKOFF_S[max(0, job.crashes - 1)]
        self.stop(job_id, Status.QUEUED, self.now() + timedelta(seconds=wait_s))

    def move(self, job_id: str, other_id: str, *, is_before: bool) -> None:
        job, other = self.jobs[job_id], self.jobs[other_id]
        places = [
            one.place
            for one_id, one in self.jobs.items()
            if one_id != job_id and one.status in LIVE and one.priority == other.priority
        ]
        beyond = [place for place in places if (place > other.place if is_before else place < other.place)]
        if beyond:
            end = min(beyond) if is_before else max(beyond)
        else:
            end = other.place + (2 if is_before else -2)
        job.priority, job.place = other.priority, (other.place + end) / 2
        self.last_place = min(self.last_place, job.place)


class QueueMachine(RuleBasedStateMachine):
    """Every verb on the queue and on the model; what one refuses the other must refuse."""

    database: ClassVar[Database]

    def __init__(self) -> None:
        super().__init__()
        with self.database.writing() as connection:
            connection.execute(job.delete())
            connection.execute(gate.update().values(last_place=0, drained_at=None, is_preempting=False))
        self.clock = Clock()
        self.queue = Queue(self.database, self.clock)
        self.model = Model(self.clock)
        self.told: dict[str, list[Any]] = {}
        self.attempts: dict[str, int] = {}
        self.ended: dict[str, str] = {}
        self.stale: list[Token] = []
        self.known: list[str] = []

    def _job(self, pick: int) -> str:
        """Pick a job that may still run; now and then any there ever was."""
        live = [job_id for job_id, job in self.model.jobs.items() if job.status in LIVE]
        if self.known and (pick >= 12 or not live):
            return self.known[pick % len(self.known)]
        return live[pick % len(live)] if live else "0" * 26

    def _token(self, pick: int) -> Token:
        """Pick the token of a running job; now and then one that has run out."""
        live = [(job_id, self.model.jobs[job_id].attempt) for job_id in self.model.holders]
        if self.stale and (pick >= 12 or not live):
            return self.stale[pick % len(self.stale)]
        return live[pick % len(live)] if live else ("0" * 26, 1)

    def _agrees(self, is_allowed: bool, verb: Callable[[], object]) -> bool:
        """Do it, or see it refused; return whether it was done."""
        if is_allowed:
            verb()
        else:
            with pytest.raises((ServiceError, LostJob)):
                verb()
        return is_allowed

    # ---- users ----

    @initialize(priorities=st.lists(st.integers(-1, 1), min_size=3, max_size=5))
    def begin(self, priorities: list[int]) -> None:
        for priority in priorities:
            self.submit(priority, [], None)
        for slot in SLOTS[:2]:
            self.claim(slot)

    @precondition(lambda self: sum(job.status in LIVE for job in self.model.jobs.values()) < MAX_JOBS)
    @rule(
        priority=st.integers(-1, 1),
        picks=st.lists(PICK, max_size=2, unique=True),
        wait_s=st.sampled_from([None, None, None, 20]),
    )
    def submit_another(self, priority: int, picks: list[int], wait_s: int | None) -> None:
        self.submit(priority, [self._job(pick) for pick in picks], wait_s)

    def submit(self, priority: int, needs: list[str], wait_s: int | None) -> None:
        not_before = None if wait_s is None else self.clock() + timedelta(seconds=wait_s)
        request = make_request(
            priority=priority, depends_on=needs, not_before=not_before, max_attempts=MAX_ATTEMPTS
        )
        dead = [one for one in needs if one not in self.model.jobs or self._is_lost(one)]
        made: list[str] = []
        if self._agrees(not dead, lambda: made.append(self.queue.submit(request)[0].id)):
            self.model.last_place -= 1
            self.model.jobs[made[0]] = Job(priority, self.model.last_place, frozenset(needs), not_before)
            self.known.append(made[0])

    def _is_lost(self, job_id: str) -> bool:
        return self.model.status(job_id) in FINAL and self.model.status(job_id) != Status.SUCCEEDED

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK, doubt=st.integers(0, 4))
    def cancel(self, pick: int, doubt: int) -> None:
        if doubt:
            return  # else little would be left to try the rest on
        job_id = self._job(pick)
        job = self.model.jobs.get(job_id)
        if not self._agrees(
            job is not None and job.status in (*LIVE, Status.CANCELLED), lambda: self.queue.cancel(job_id)
        ):
            return
        assert job is not None
        if job.status == Status.RUNNING:
            job.is_cancel_asked = True
        elif job.status in LIVE:
            self.model.leave(job_id, Status.CANCELLED)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def pause(self, pick: int) -> None:
        job_id = self._job(pick)
        job = self.model.jobs.get(job_id)
        if not self._agrees(
            job is not None and job.status in LIVE and not job.is_cancel_asked,
            lambda: self.queue.pause(job_id),
        ):
            return
        assert job is not None
        if job.status == Status.RUNNING:
            job.is_pause_asked = True
        elif job.status == Status.QUEUED:
            self.model.leave(job_id, Status.PAUSED)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK)
    def resume(self, pick: int) -> None:
        job_id = self._job(pick)
        job = self.model.jobs.get(job_id)
        if not self._agrees(job is not None and job.status in LIVE, lambda: self.queue.resume(job_id)):
            return
        assert job is not None
        job.is_pause_asked = False
        if job.status == Status.PAUSED:
            self.model.leave(job_id, Status.QUEUED)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK, priority=st.integers(-1, 1))
    def edit(self, pick: int, priority: int) -> None:
        job_id = self._job(pick)
        job = self.model.jobs.get(job_id)
        is_allowed = job is not None and (job.status in LIVE or job.priority == priority)
        request = make_request(priority=priority)
        if self._agrees(is_allowed, lambda: self.queue.edit(job_id, request, ["priority"])):
            assert job is not None
            job.priority = priority

    @precondition(lambda self: self.model.jobs)
    @rule(pick=PICK, other=PICK, is_before=st.booleans())
    def move(self, pick: int, other: int, is_before: bool) -> None:
        job_id, other_id = self._job(pick), self._job(other)
        both = [self.model.jobs.get(one) for one in (job_id, other_id)]
        is_allowed = job_id != other_id and all(one and one.status == Status.QUEUED for one in both)
        side = {"before": other_id} if is_before else {"after": other_id}
        if self._agrees(is_allowed, lambda: self.queue.move(job_id, **side)):
            self.model.move(job_id, other_id, is_before=is_before)

    @precondition(lambda self: any(job.status in FINAL for job in self.model.jobs.values()))
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        job_id = self.known[pick % len(self.known)]
        job = self.model.jobs.get(job_id)
        if self._agrees(job is not None and job.status in FINAL, lambda: self.queue.delete(job_id)):
            for seen in (self.model.jobs, self.told, self.ended):
                seen.pop(job_id, None)

    @precondition(lambda self: self.model.jobs)
    @rule(act=st.integers(0, 7))
    def turn_the_gate(self, act: int) -> None:
        if act < 2:
            self.queue.drain(is_preempting=act == 0)
            self.model.is_drained, self.model.is_preempting = True, act == 0
        else:
            self.queue.open()
            self.model.is_drained = self.model.is_preempting = False

    @rule(seconds=st.sampled_from([1, 6, 40]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # ---- workers ----

    @precondition(lambda self: self.model.line())
    @rule()
    def claim_next(self) -> None:
        for slot in SLOTS:
            self.claim(slot)

    def claim(self, slot: str) -> None:
        if any(job.slot == slot for job in self.model.jobs.values()):
            return
        expected = self.model.next()
        taken = self.queue.claim(OWNER, slot)
        assert (taken and taken.job_id) == expected
        if taken is None:
            return
        job = self.model.jobs[taken.job_id]
        job.status, job.slot, job.run_after, job.has_saved = Status.RUNNING, slot, None, False
        job.attempt += 1
        self.stale += [(taken.job_id, taken.attempt - 1)] if taken.attempt > 1 else []

    @precondition(lambda self: self.model.holders)
    @rule(pick=PICK, is_saving=st.booleans())
    def record(self, pick: int, is_saving: bool) -> None:
        token = self._token(pick)
        saved = {
            "epoch": 1,
            "batch": 0,
            "step": 0,
            "is_epoch_trained": False,
            "name": "a",
            "sha256": "0",
            "size": 1,
        }
        facts = Facts(events=[("warning", {})], checkpoints=[saved] if is_saving else ())
        asked: list[str | None] = []
        if self._agrees(self.model.holds(token), lambda: asked.append(self.queue.record(*token, facts))):
            job = self.model.jobs[token[0]]
            if is_saving:
                job.crashes, job.has_saved = 0, True
            preempt = "preempt" if self.model.is_preempting else None
            assert asked == ["cancel" if job.is_cancel_asked else "pause" if job.is_pause_asked else preempt]

    @precondition(lambda self: self.model.holders)
    @rule(pick=PICK, code=st.sampled_from(["completed", "diverged", "user"]))
    def finish(self, pick: int, code: str) -> None:
        token = self._token(pick)
        to = {"completed": Status.SUCCEEDED, "diverged": Status.FAILED, "user": Status.CANCELLED}[code]
        if self._agrees(self.model.holds(token), lambda: self.queue.finish(*token, Reason(code))):
            self.model.leave(token[0], to)

    @precondition(lambda self: self.model.holders)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        token = self._token(pick)
        if self._agrees(self.model.holds(token), lambda: self.queue.release(*token, Reason("preempted"))):
            self.model.stop(token[0], Status.QUEUED)

    @precondition(lambda self: self.model.holders)
    @rule(pick=PICK, code=st.sampled_from(["user", "disk_full"]))
    def suspend(self, pick: int, code: str) -> None:
        token = self._token(pick)
        if self._agrees(self.model.holds(token), lambda: self.queue.suspend(*token, Reason(code))):
            self.model.stop(token[0], Status.QUEUED if code == "user" else Status.PAUSED)

    @precondition(lambda self: self.model.holders)
    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        token = self._token(pick)
        if self._agrees(
            self.model.holds(token), lambda: self.queue.crash(*token, Reason("internal", "Died."))
        ):
            self.model.crash(token[0])

    # ---- what always holds ----

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        with self.database.reading() as connection:
            rows = connection.execute(sa.select(*(job.c[name] for name in SEEN)).order_by(*in_turn())).all()
            events = connection.execute(sa.select(event).order_by(event.c.job_id, event.c.seq)).all()
        self._compare(rows)
        self._grow(rows)
        self._append(events)

    def _compare(self, rows: Sequence[Any]) -> None:
        found = {
            row.id: (row.status, row.attempt, row.crashes, row.priority, row.slot, row.run_after)
            for row in rows
        }
        assert found == {
            job_id: (one.status, one.attempt, one.crashes, one.priority, one.slot, one.run_after)
            for job_id, one in self.model.jobs.items()
        }
        assert [row.id for row in rows if row.status == Status.QUEUED] == self.model.line()

    def _grow(self, rows: Sequence[Any]) -> None:
        for row in rows:
            assert row.attempt >= self.attempts.get(row.id, 0)
            self.attempts[row.id] = row.attempt
            if row.status in FINAL:
                assert self.ended.setdefault(row.id, row.reason_code) == row.reason_code

    def _append(self, rows: Sequence[Any]) -> None:
        told: dict[str, list[Any]] = {}
        for row in rows:
            told.setdefault(row.job_id, []).append((row.seq, row.kind, row.attempt, row.data))
        for job_id, before in self.told.items():
            assert told[job_id][: len(before)] == before
        for job_id, history in told.items():
            seqs = [one[0] for one in history]
            assert seqs == sorted(set(seqs)), job_id
            assert [one[1] for one in history].count("finished") <= 1
        self.told = told


def test_the_queue_does_what_its_model_does(database: Database) -> None:
    class Machine(QueueMachine):
        pass

    Machine.database = database
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30 if database.write_engine.dialect.name == "sqlite" else 10,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
