"""The queue on both engines: guarded changes, claims, crashes, dependencies."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from app.db import connect
from app.errors import IllegalTransition, InvalidRequest, JobNotFound
from app.jobs.queue import Claim, Facts, KeyReuse, LostJob, Queue, Reason
from app.jobs.states import ENDINGS, FINAL, Status
from app.jobs.tables import batch_row, job
from tests.factories import OWNER, SLOT, Clock, make_request
from tests.postgres.engines import MakeQueue
from tests.postgres.server import url_of

DONE = Reason("completed", "All epochs are done.")


def claim(queue: Queue) -> Claim:
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    return taken


def kinds(queue: Queue, job_id: str) -> list[str]:
    return [event.kind for event in queue.events(job_id)]


def test_a_submitted_job_waits_with_its_config_and_hash(make_queue: MakeQueue) -> None:
    queue = make_queue()
    row, is_new = queue.submit(make_request(name="a"))
    assert is_new
    assert (row.status, row.attempt, row.name) == (Status.QUEUED, 0, "a")
    assert row.config["training"]["epochs"] == 15
    assert queue.submit(make_request(name="b"))[0].config_hash == row.config_hash
    assert queue.submit(make_request(training={"seed": 1}))[0].config_hash != row.config_hash


def test_claim_takes_the_highest_priority_then_the_oldest(make_queue: MakeQueue) -> None:
    queue = make_queue()
    ids = [queue.submit(make_request(priority=priority))[0].id for priority in (0, 5, 5, -1)]
    order = []
    for _ in ids:
        taken = claim(queue)
        order.append(taken.job_id)
        queue.finish(taken.job_id, taken.attempt, DONE)
    assert order == [ids[1], ids[2], ids[0], ids[3]]
    assert queue.claim(OWNER, SLOT) is None


def test_position_counts_the_jobs_ahead(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first, second, urgent = (queue.submit(make_request(priority=p))[0] for p in (0, 0, 9))
    assert [queue.position(row) for row in (urgent, first, second)] == [1, 2, 3]


def test_a_slot_runs_one_job_at_a_time(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.submit(make_request())
    queue.submit(make_request())
    claim(queue)
    with pytest.raises(sa.exc.IntegrityError):
        queue.claim(OWNER, SLOT)


def test_claims_in_parallel_never_take_a_job_twice(make_queue: MakeQueue) -> None:
    queue = make_queue()
    ids = {queue.submit(make_request())[0].id for _ in range(60)}
    url = url_of(queue.database)
    barrier = threading.Barrier(6)

    def work(number: int) -> list[str]:
        mine = Queue(connect(url, busy_timeout_s=30))
        barrier.wait()
        taken = []
        while (got := mine.claim(OWNER, f"slot-{number}")) is not None:
            taken.append(got.job_id)
            mine.finish(got.job_id, got.attempt, DONE)
        mine.database.dispose()
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for part in pool.map(work, range(6)) for job_id in part]
    assert len(taken) == len(ids)
    assert set(taken) == ids


def test_second_finish_changes_nothing(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.submit(make_request())
    taken = claim(queue)
    queue.finish(taken.job_id, taken.attempt, DONE)
    with pytest.raises(LostJob):
        queue.finish(taken.job_id, taken.attempt, Reason("diverged", "late"))
    assert queue.get(taken.job_id).reason_code == "completed"


def test_an_old_token_writes_nothing(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.submit(make_request())
    old = claim(queue)
    queue.crash(old.job_id, old.attempt, Reason("internal", "died"))
    new = claim(queue)
    assert new.attempt == old.attempt + 1
    row = {"epoch": 1, "batch": 0, "step": 1, "loss": 1.0, "accuracy": 0.5, "time": datetime.now(UTC)}
    for write in (
        lambda: queue.record(old.job_id, old.attempt, Facts(batches=[row], progress={"epoch": 9})),
        lambda: queue.release(old.job_id, old.attempt, Reason("preempted")),
        lambda: queue.crash(old.job_id, old.attempt, Reason("internal")),
        lambda: queue.restart(old.job_id, old.attempt),
    ):
        with pytest.raises(LostJob):
            write()
    with queue.database.reading() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(batch_row)).scalar_one() == 0
    assert queue.get(old.job_id).epoch is None


def test_crashes_back_off_then_end_in_a_crash_loop(make_queue: MakeQueue) -> None:
    clock = Clock()
    queue = make_queue(clock)
    job_id = queue.submit(make_request())[0].id
    died = Reason("internal", "The training process was killed by SIGKILL.")
    taken = claim(queue)
    assert queue.crash(job_id, taken.attempt, died) == Status.QUEUED
    taken = claim(queue)  # the first restart comes at once
    assert queue.crash(job_id, taken.attempt, died) == Status.QUEUED
    assert queue.claim(OWNER, SLOT) is None
    assert queue.get(job_id).reason_code == "backoff"
    clock.advance(5.1)
    taken = claim(queue)
    assert queue.crash(job_id, taken.attempt, died) == Status.FAILED
    row = queue.get(job_id)
    assert (row.reason_code, row.crashes, row.attempt) == ("crash_loop", 3, 3)
    assert "SIGKILL" in row.reason_message
    assert kinds(queue, job_id).count("crashed") == 3


def test_a_native_crash_keeps_its_name_at_the_end_of_the_budget(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request(max_attempts=1))[0].id
    queue.crash(job_id, claim(queue).attempt, Reason("native_crash", "SIGSEGV"))
    assert queue.get(job_id).reason_code == "native_crash"


def test_a_release_costs_no_crash(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    queue.release(job_id, claim(queue).attempt, Reason("preempted", "stopped"))
    row = queue.get(job_id)
    assert (row.status, row.reason_code, row.crashes) == (Status.QUEUED, "preempted", 0)


def test_cancel_of_a_queued_job_is_immediate_and_repeatable(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    assert queue.cancel(job_id)[1]
    before = kinds(queue, job_id)
    assert queue.cancel(job_id)[1]
    assert kinds(queue, job_id) == before
    assert queue.get(job_id).status == Status.CANCELLED


def test_cancel_of_a_running_job_is_a_request_the_worker_reads(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    assert not queue.record(job_id, taken.attempt, Facts())
    row, done = queue.cancel(job_id)
    assert not done
    assert row.status == Status.RUNNING
    queue.cancel(job_id)
    assert kinds(queue, job_id).count("cancel_requested") == 1
    assert queue.record(job_id, taken.attempt, Facts())


@pytest.mark.parametrize("verb", ["crash", "release"])
def test_a_requested_cancel_wins_over_another_attempt(make_queue: MakeQueue, verb: str) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    queue.cancel(job_id)
    getattr(queue, verb)(job_id, taken.attempt, Reason("internal", "died"))
    assert queue.get(job_id).status == Status.CANCELLED


def test_a_job_that_has_ended_cannot_be_cancelled(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    queue.finish(job_id, claim(queue).attempt, DONE)
    with pytest.raises(IllegalTransition):
        queue.cancel(job_id)
    with pytest.raises(JobNotFound):
        queue.cancel("0" * 26)


def test_not_before_holds_a_job_back(make_queue: MakeQueue) -> None:
    clock = Clock()
    queue = make_queue(clock)
    queue.submit(make_request(not_before=clock.time + timedelta(hours=1)))
    assert queue.claim(OWNER, SLOT) is None
    clock.advance(3600)
    claim(queue)


def test_a_dependent_waits_for_success_and_falls_with_failure(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = queue.submit(make_request())[0].id
    second = queue.submit(make_request(depends_on=[first]))[0].id
    third = queue.submit(make_request(depends_on=[second]))[0].id
    taken = claim(queue)
    assert taken.job_id == first
    assert queue.claim(OWNER, "other") is None
    assert queue.waits_for(second) == [first]
    queue.finish(first, taken.attempt, DONE)
    taken = claim(queue)
    assert taken.job_id == second
    queue.finish(second, taken.attempt, Reason("diverged", "NaN"))
    row = queue.get(third)
    assert (row.status, row.reason_code) == (Status.CANCELLED, "dependency_failed")


def test_dependencies_that_cannot_succeed_are_refused(make_queue: MakeQueue) -> None:
    queue = make_queue()
    dead = queue.submit(make_request())[0].id
    queue.cancel(dead)
    with pytest.raises(InvalidRequest) as caught:
        queue.submit(make_request(depends_on=[dead, "0" * 26]))
    assert [problem.code for problem in caught.value.problems] == ["dependency_failed", "job_not_found"]


def test_an_idempotency_key_makes_one_job(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first, is_new = queue.submit(make_request(), idempotency_key="k")
    again, is_new_again = queue.submit(make_request(), idempotency_key="k")
    assert (is_new, is_new_again, again.id) == (True, False, first.id)
    with pytest.raises(KeyReuse):
        queue.submit(make_request(name="other"), idempotency_key="k")


def test_rows_and_events_share_one_growing_sequence(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    row = {"step": 1, "loss": 1.0, "accuracy": 0.5, "time": datetime.now(UTC)}
    queue.record(
        job_id,
        taken.attempt,
        Facts(events=[("prepared", {})], batches=[{**row, "epoch": 1, "batch": b} for b in (0, 10)]),
    )
    with queue.database.reading() as connection:
        seqs = connection.execute(sa.select(batch_row.c.seq)).scalars().all()
    assert sorted([*seqs, *(event.seq for event in queue.events(job_id))]) == list(
        range(1, queue.get(job_id).seq + 1)
    )


def test_a_restart_drops_the_rows_and_says_so(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    row = {"epoch": 1, "batch": 0, "step": 1, "loss": 1.0, "accuracy": 0.5, "time": datetime.now(UTC)}
    queue.record(job_id, taken.attempt, Facts(batches=[row]))
    queue.crash(job_id, taken.attempt, Reason("internal", "died"))
    again = claim(queue)
    queue.restart(job_id, again.attempt)
    queue.record(job_id, again.attempt, Facts(batches=[row]))
    assert kinds(queue, job_id)[-1] == "resumed"


def test_orphans_are_the_running_jobs_of_the_slot(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    claim(queue)
    assert [row.id for row in queue.orphans(SLOT)] == [job_id]
    assert queue.orphans("elsewhere/0") == []


@pytest.mark.parametrize(
    "lie",
    [
        {"status": "done"},
        {"status": "succeeded"},
        {"status": "running"},
        {"phase": "training"},
        {"best_epoch": 1},
        {"priority": 5000},
    ],
    ids=str,
)
def test_a_row_cannot_lie(make_queue: MakeQueue, lie: dict[str, object]) -> None:
    queue = make_queue()
    queue.submit(make_request())
    with pytest.raises(sa.exc.IntegrityError), queue.database.writing() as connection:
        connection.execute(job.update().values(**lie))


def test_every_ending_has_a_final_status() -> None:
    assert set(ENDINGS.values()) == FINAL


def test_a_flush_that_is_sent_again_is_written_once(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    told = [Facts(events=[("warning", {"message": str(number)})], flush=number) for number in (1, 2, 3)]
    for facts in (told[0], told[0], told[1], told[1]):
        queue.record(job_id, taken.attempt, facts)
    queue.cancel(job_id)
    assert queue.record(job_id, taken.attempt, told[1]) == "cancel"
    for _ in range(2):
        assert queue.finish(job_id, taken.attempt, DONE, told[2]) == Status.SUCCEEDED
    assert kinds(queue, job_id)[2:] == ["warning", "warning", "cancel_requested", "warning", "finished"]


def test_an_attempt_whose_earlier_flush_is_missing_has_lost_its_job(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request())[0].id
    taken = claim(queue)
    queue.record(job_id, taken.attempt, Facts(flush=1))
    for flush in (0, 3):
        with pytest.raises(LostJob):
            queue.record(job_id, taken.attempt, Facts(flush=flush))
    queue.crash(job_id, taken.attempt, Reason("internal"), Facts(flush=2))
    with pytest.raises(LostJob):
        queue.record(job_id, taken.attempt, Facts(flush=2))
    assert claim(queue).attempt == taken.attempt + 1
    queue.record(job_id, taken.attempt + 1, Facts(flush=1))


def test_a_slot_leaves_the_jobs_of_other_devices_to_them(make_queue: MakeQueue) -> None:
    queue = make_queue()
    devices = ("cuda:1", "auto", "cuda:7", "cuda:0")
    ids = {device: queue.submit(make_request(device=device))[0].id for device in devices}
    taken = []
    for number in range(3):
        one = queue.claim(OWNER, f"{SLOT}-{number}", not_on=("cuda:1", "cpu:0"))
        assert one is not None
        taken.append(one)
    assert [one.job_id for one in taken] == [ids["auto"], ids["cuda:7"], ids["cuda:0"]]
    assert queue.claim(OWNER, "another", not_on=("cuda:1",)) is None
    began = Facts(progress={"resolved": {"device": "cuda:0"}})
    queue.release(taken[0].job_id, taken[0].attempt, Reason("preempted"), began)
    assert queue.claim(OWNER, "another", not_on=("cuda:1", "cuda:0")) is None
    back = queue.claim(OWNER, "another", not_on=("cuda:1",))
    assert back is not None
    assert back.job_id == ids["auto"]


def test_a_clock_that_is_put_back_keeps_no_job_waiting(make_queue: MakeQueue) -> None:
    clock = Clock()
    queue = make_queue(clock)
    job_id = queue.submit(make_request(max_attempts=5))[0].id
    clock.advance(3600)
    for _ in range(2):
        taken = queue.claim(OWNER, SLOT)
        assert taken is not None
        queue.crash(job_id, taken.attempt, Reason("internal", "Died."))
    assert queue.claim(OWNER, SLOT) is None, "5 s of backoff"
    clock.advance(-3600)
    assert queue.claim(OWNER, SLOT) is not None
