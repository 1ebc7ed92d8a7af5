"""What users ask of jobs and of the queue, on both engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.errors import IllegalTransition, InvalidRequest, JobNotFound
from app.jobs.queue import Claim, Facts, JobInUse, Queue, Reason, Row, submitting
from app.jobs.states import Status
from tests.factories import OWNER, SLOT, Clock, make_request
from tests.postgres.engines import MakeQueue

DONE = Reason("completed", "All epochs are done.")
UNKNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def submit(queue: Queue, **sections: object) -> str:
    return str(queue.submit(make_request(**sections))[0].id)


def claim(queue: Queue) -> Claim:
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    return taken


def kinds(queue: Queue, job_id: str) -> list[str]:
    return [event.kind for event in queue.events(job_id)]


def order(queue: Queue) -> list[str]:
    return [row.id for row in queue.line()]


def test_pause_of_a_queued_job_is_immediate_and_resume_gives_its_place_back(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first, second = submit(queue), submit(queue)
    row, done = queue.pause(first)
    assert (row.status, row.reason_code, done) == (Status.PAUSED, "user", True)
    assert queue.pause(first)[1]
    assert order(queue) == [second]
    row, done = queue.resume(first)
    assert (row.status, done) == (Status.QUEUED, True)
    assert queue.resume(first)[1]
    assert order(queue) == [first, second]
    assert kinds(queue, first) == ["submitted", "paused", "unpaused"]


def test_pause_of_a_running_job_is_an_order_the_worker_obeys(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    assert queue.record(job_id, taken.attempt, Facts()) is None
    assert not queue.pause(job_id)[1]
    assert not queue.pause(job_id)[1]
    assert kinds(queue, job_id).count("pause_requested") == 1
    assert queue.record(job_id, taken.attempt, Facts()) == "pause"
    assert queue.suspend(job_id, taken.attempt) == Status.PAUSED
    row = queue.get(job_id)
    assert (row.reason_code, row.crashes, row.pause_requested_at) == ("user", 0, None)
    queue.resume(job_id)
    assert queue.record(job_id, claim(queue).attempt, Facts()) is None


def test_a_pause_taken_back_is_no_order_any_more(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    queue.pause(job_id)
    assert queue.resume(job_id)[1]
    assert queue.record(job_id, taken.attempt, Facts()) is None
    # It may have come too late: the worker has stopped already.
    assert queue.suspend(job_id, taken.attempt) == Status.QUEUED


@pytest.mark.parametrize("verb", ["crash", "release"])
def test_a_requested_pause_wins_over_another_attempt(make_queue: MakeQueue, verb: str) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    queue.pause(job_id)
    getattr(queue, verb)(job_id, taken.attempt, Reason("internal", "died"))
    assert queue.get(job_id).status == Status.PAUSED


def test_cancel_wins_over_pause(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    queue.pause(job_id)
    queue.cancel(job_id)
    assert queue.record(job_id, taken.attempt, Facts()) == "cancel"
    with pytest.raises(IllegalTransition):
        queue.pause(job_id)
    assert queue.suspend(job_id, taken.attempt) == Status.CANCELLED


def test_a_full_disk_pauses_and_a_user_who_pauses_it_too_keeps_it_paused(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    assert queue.suspend(job_id, claim(queue).attempt, Reason("disk_full", "Needs 1 GB.")) == Status.PAUSED
    assert queue.get(job_id).reason_code == "disk_full"
    queue.pause(job_id)
    assert queue.get(job_id).reason_code == "user"


def test_a_busy_gpu_holds_a_job_back_for_a_while(make_queue: MakeQueue) -> None:
    clock = Clock()
    queue = make_queue(clock)
    job_id = submit(queue)
    queue.release(job_id, claim(queue).attempt, Reason("gpu_busy", "Held by 4711."), again_in_s=10)
    assert queue.claim(OWNER, SLOT) is None
    clock.advance(11)
    assert claim(queue).job_id == job_id


@pytest.mark.parametrize("verb", ["pause", "resume", "edit", "move"])
def test_a_job_that_has_ended_takes_no_orders(make_queue: MakeQueue, verb: str) -> None:
    queue = make_queue()
    job_id, other = submit(queue), submit(queue)
    queue.finish(job_id, claim(queue).attempt, DONE)
    orders: dict[str, Callable[[], object]] = {
        "pause": lambda: queue.pause(job_id),
        "resume": lambda: queue.resume(job_id),
        "edit": lambda: queue.edit(job_id, make_request(priority=5), ["priority"]),
        "move": lambda: queue.move(job_id, before=other),
    }
    with pytest.raises(IllegalTransition):
        orders[verb]()


def test_labels_of_an_ended_job_may_change_and_the_config_follows(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    queue.finish(job_id, claim(queue).attempt, DONE)
    before = queue.get(job_id)
    row = queue.edit(job_id, make_request(name="n", tags=["t"]), ["name", "tags"])
    assert (row.name, row.tags, row.config["name"]) == ("n", ["t"], "n")
    assert row.config_hash == before.config_hash
    queue.edit(job_id, make_request(name="n"), ["name"])
    assert kinds(queue, job_id).count("edited") == 1


def test_an_edited_job_still_answers_to_its_key(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first, _ = queue.submit(make_request(), idempotency_key="k")
    queue.edit(first.id, make_request(priority=5), ["priority"])
    again, is_new = queue.submit(make_request(), idempotency_key="k")
    assert (again.id, is_new) == (first.id, False)


def test_a_new_not_before_holds_and_lets_go(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    queue.edit(job_id, make_request(not_before="2100-01-01T00:00:00Z"), ["not_before"])
    assert queue.claim(OWNER, SLOT) is None
    queue.edit(job_id, make_request(), ["not_before"])
    assert claim(queue).job_id == job_id


def test_moving_takes_the_neighbours_priority_and_the_place_beside_it(make_queue: MakeQueue) -> None:
    queue = make_queue()
    a, b, c = (submit(queue) for _ in range(3))
    urgent = submit(queue, priority=5)
    assert order(queue) == [urgent, a, b, c]
    queue.move(c, before=a)
    assert order(queue) == [urgent, c, a, b]
    queue.move(c, after=a)
    assert order(queue) == [urgent, a, c, b]
    row = queue.move(b, before=urgent)
    assert (row.priority, row.config["priority"]) == (5, 5)
    assert order(queue) == [b, urgent, a, c]
    assert [queue.position(queue.get(job_id)) for job_id in order(queue)] == [1, 2, 3, 4]
    assert claim(queue).job_id == b


def test_what_is_submitted_after_a_move_to_the_end_comes_last(make_queue: MakeQueue) -> None:
    queue = make_queue()
    a, b = submit(queue), submit(queue)
    queue.move(a, after=b)
    c = submit(queue)
    assert order(queue) == [b, a, c]


def test_places_never_run_out(make_queue: MakeQueue) -> None:
    queue = make_queue()
    a, b, c = (submit(queue) for _ in range(3))
    for _ in range(25):
        queue.move(b, before=c)
        queue.move(a, before=c)
        assert order(queue) == [b, a, c]
        queue.move(a, before=b)
        queue.move(b, before=c)
        assert order(queue) == [a, b, c]
    for _ in range(submitting.GAP.bit_length() + 2):  # halves the same gap again and again
        queue.move(a, after=b)
        queue.move(b, after=a)
    assert order(queue) == [a, b, c]


@pytest.mark.parametrize(("neighbour", "code"), [("self", "same_job"), ("unknown", "job_not_found")])
def test_a_neighbour_must_be_another_job(make_queue: MakeQueue, neighbour: str, code: str) -> None:
    queue = make_queue()
    job_id = submit(queue)
    with pytest.raises(InvalidRequest) as caught:
        queue.move(job_id, before=job_id if neighbour == "self" else UNKNOWN)
    assert [(p.pointer, p.code) for p in caught.value.problems] == [("/before", code)]


def test_a_running_job_has_no_place_beside_it(make_queue: MakeQueue) -> None:
    queue = make_queue()
    running, waiting = submit(queue), submit(queue)
    claim(queue)
    with pytest.raises(IllegalTransition):
        queue.move(waiting, before=running)


def test_a_drained_queue_starts_nothing_and_asks_for_what_runs(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    submit(queue)
    assert not queue.drain()
    since = queue.drained_at()
    assert queue.record(job_id, taken.attempt, Facts()) == "preempt"
    queue.release(job_id, taken.attempt, Reason("preempted"))
    assert queue.claim(OWNER, SLOT) is None
    assert queue.drain()
    assert queue.drained_at() == since is not None
    queue.open()
    assert queue.drained_at() is None
    assert claim(queue).job_id == job_id


def test_a_drained_queue_may_let_what_runs_run_on(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    taken = claim(queue)
    queue.drain(is_preempting=False)
    assert queue.record(job_id, taken.attempt, Facts()) is None


def test_only_an_ended_job_is_deleted_and_all_its_rows_with_it(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    with pytest.raises(IllegalTransition):
        queue.delete(job_id)
    dependent = submit(queue, depends_on=[job_id])
    queue.finish(job_id, claim(queue).attempt, DONE)
    assert queue.delete(job_id).id == job_id
    with pytest.raises(JobNotFound):
        queue.events(job_id)
    with pytest.raises(JobNotFound):
        queue.delete(job_id)
    assert claim(queue).job_id == dependent


def test_a_death_while_the_files_go_leaves_a_job_to_delete_again(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = submit(queue)
    queue.cancel(job_id)

    def die(row: Row) -> None:
        assert queue.get(row.id).id == job_id
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        queue.delete(job_id, die)
    removed: list[str] = []
    queue.delete(job_id, lambda row: removed.append(row.id))
    assert removed == [job_id]
    with pytest.raises(JobNotFound):
        queue.get(job_id)


def test_a_job_that_another_starts_from_is_kept(make_queue: MakeQueue) -> None:
    queue = make_queue()
    parent = submit(queue)
    taken = claim(queue)
    saved = {
        "epoch": 1,
        "batch": 3,
        "step": 2,
        "is_epoch_trained": False,
        "name": "attempts/1/a.ckpt",
        "sha256": "0" * 64,
        "size": 1,
    }
    queue.record(parent, taken.attempt, Facts(checkpoints=[saved], progress={"data_fingerprint": "f"}))
    queue.finish(parent, taken.attempt, Reason("diverged", "NaN"))
    child, _ = queue.submit(make_request(), parent_id=parent, is_retry=True, data_fingerprint="f")
    with pytest.raises(JobInUse, match=child.id):
        queue.delete(parent)
    queue.cancel(child.id)
    queue.delete(parent)
