"""Resume checkpoints on both engines: what counts, what goes, what a retry takes along."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from app.errors import IllegalTransition, InvalidRequest
from app.jobs.metrics import since
from app.jobs.queue import Claim, Facts, LostJob, Queue, Reason
from app.jobs.states import Status
from app.jobs.tables import epoch_row
from tests.app.api.service import batch, epoch
from tests.factories import OWNER, SLOT, Clock, make_request
from tests.postgres.engines import MakeQueue

DIED = Reason("internal", "It was killed.")


def claim(queue: Queue) -> Claim:
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    return taken


def started(queue: Queue, **sections: Any) -> Claim:
    queue.submit(make_request(**sections), data_fingerprint="f")
    return claim(queue)


def saved(epoch: int, batch: int, step: int, *, is_epoch_trained: bool = False) -> dict[str, Any]:
    name = f"attempts/1/resume-{epoch}-{step}{'v' if is_epoch_trained else ''}.ckpt"
    return {
        "epoch": epoch,
        "batch": batch,
        "step": step,
        "is_epoch_trained": is_epoch_trained,
        "name": name,
        "sha256": "0" * 64,
        "size": 10,
    }


def bested(number: int, loss: float) -> dict[str, Any]:
    return epoch(number) | {
        "val_loss": loss,
        "best": True,
        "best_file": f"attempts/1/best-e{number}.pth",
        "best_sha256": str(number) * 64,
        "best_bytes": number,
    }


def rows(queue: Queue, job_id: str) -> tuple[list[tuple[int, int]], list[int]]:
    with queue.database.reading() as connection:
        found = since(connection, job_id)
    batches = list(zip(found.batches["epoch"], found.batches["batch"], strict=True))
    return batches, [row["epoch"] for row in found.epochs]


def trained(queue: Queue, taken: Claim) -> None:
    """Report two epochs of three batches, a best each, and half of a third; saved in the middle of each."""
    for number in (1, 2, 3):
        first_step = 3 * (number - 1) + 1
        batches = [batch(number, place) | {"step": first_step + place} for place in range(3)]
        queue.record(taken.job_id, taken.attempt, Facts(batches=batches[:2]))
        queue.record(taken.job_id, taken.attempt, Facts(checkpoints=[saved(number, 2, first_step + 2)]))
        if number < 3:
            queue.record(
                taken.job_id, taken.attempt, Facts(batches=batches[2:], epochs=[bested(number, 1 / number)])
            )


def test_a_claim_carries_the_newest_checkpoint_and_the_best_at_it(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = started(queue)
    assert first.checkpoint is None
    trained(queue, first)
    queue.crash(first.job_id, first.attempt, DIED)
    at = claim(queue).checkpoint
    assert at is not None
    assert (at.job_id, at.epoch, at.batch, at.step, at.attempt) == (first.job_id, 3, 2, 9, 1)
    assert at.best_file == "attempts/1/best-e2.pth"
    assert [one.epoch for one in queue.checkpoints(first.job_id)] == [3, 2, 1]


def test_resuming_drops_what_lies_beyond_and_restores_the_best(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = started(queue)
    trained(queue, first)
    queue.crash(first.job_id, first.attempt, DIED)
    again = claim(queue)
    newest, middle, _oldest = queue.checkpoints(again.job_id)
    before = queue.get(again.job_id).seq
    left = queue.discard_checkpoint(again.job_id, again.attempt, newest, "its sha256 is wrong")
    assert left == middle
    queue.resume_at(again.job_id, again.attempt, middle)
    assert rows(queue, again.job_id) == ([(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)], [1])
    row = queue.get(again.job_id)
    assert (row.best_epoch, row.best_val_loss, row.best_file) == (1, 1.0, "attempts/1/best-e1.pth")
    assert (row.epoch, row.batch) == (2, 2)
    assert [one.step for one in queue.checkpoints(again.job_id)] == [6, 3]
    kinds = [event.kind for event in queue.events(again.job_id, after=before)]
    assert kinds == ["checkpoint_discarded", "resumed"]
    with queue.database.reading() as connection:
        assert since(connection, again.job_id, after=before).rewinds == [{"epoch": 2, "batch": 2}]
    # A replayed row is a new row.
    queue.record(
        again.job_id, again.attempt, Facts(batches=[batch(2, 2) | {"step": 6}], epochs=[bested(2, 0.5)])
    )
    with queue.database.reading() as connection:
        found = since(connection, again.job_id, after=before)
    assert (found.batches["batch"], [row["epoch"] for row in found.epochs]) == ([2], [2])
    assert queue.get(again.job_id).best_epoch == 2


def test_behind_a_trained_epoch_only_its_validation_is_repeated(make_queue: MakeQueue) -> None:
    queue = make_queue()
    taken = started(queue)
    facts = Facts(
        batches=[batch(1, 0), batch(1, 1) | {"step": 2}],
        epochs=[bested(1, 1.0)],
        checkpoints=[saved(1, 2, 3, is_epoch_trained=True)],
    )
    queue.record(taken.job_id, taken.attempt, facts)
    queue.crash(taken.job_id, taken.attempt, DIED)
    again = claim(queue)
    queue.resume_at(again.job_id, again.attempt, again.checkpoint)
    assert rows(queue, again.job_id) == ([(1, 0), (1, 1)], [])
    assert queue.get(again.job_id).best_epoch is None


def test_a_best_that_was_linked_elsewhere_is_named_there(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = started(queue)
    trained(queue, first)
    queue.crash(first.job_id, first.attempt, DIED)
    again = claim(queue)
    queue.resume_at(again.job_id, again.attempt, again.checkpoint, best_file="attempts/2/best-e2.pth")
    assert queue.get(again.job_id).best_file == "attempts/2/best-e2.pth"
    assert {"attempts/1/best-e2.pth", "attempts/2/best-e2.pth"} <= queue.kept_files(again.job_id)


def test_behind_the_last_epoch_all_rows_stay(make_queue: MakeQueue) -> None:
    queue = make_queue()
    taken = started(queue)
    facts = Facts(batches=[batch(1, 0)], epochs=[bested(1, 1.0)], checkpoints=[saved(2, 0, 1)])
    queue.record(taken.job_id, taken.attempt, facts)
    queue.crash(taken.job_id, taken.attempt, DIED)
    again = claim(queue)
    queue.resume_at(again.job_id, again.attempt, again.checkpoint)
    assert rows(queue, again.job_id) == ([(1, 0)], [1])
    assert queue.get(again.job_id).best_epoch == 1


def test_a_restart_from_zero_forgets_all(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = started(queue)
    trained(queue, first)
    queue.crash(first.job_id, first.attempt, DIED)
    again = claim(queue)
    queue.restart(again.job_id, again.attempt)
    assert rows(queue, again.job_id) == ([], [])
    assert queue.checkpoints(again.job_id) == []
    row = queue.get(again.job_id)
    assert (row.best_epoch, row.best_file, row.epoch) == (None, None, None)


def test_an_attempt_with_progress_costs_no_crash_and_restarts_at_once(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job_id = queue.submit(make_request(max_attempts=2))[0].id
    for number in range(6):
        taken = claim(queue)
        facts = Facts(checkpoints=[saved(1, number, number + 1)])
        assert queue.crash(job_id, taken.attempt, DIED, facts) == Status.QUEUED
        assert queue.get(job_id).crashes == 0
    queue.crash(job_id, claim(queue).attempt, DIED)
    assert queue.crash(job_id, claim(queue).attempt, DIED) == Status.FAILED


def test_a_checkpoint_resets_the_crashes_before_it(make_queue: MakeQueue) -> None:
    queue = make_queue()
    taken = started(queue)
    queue.crash(taken.job_id, taken.attempt, DIED)
    again = claim(queue)
    assert queue.get(taken.job_id).crashes == 1
    queue.record(taken.job_id, again.attempt, Facts(checkpoints=[saved(1, 0, 1)]))
    assert queue.get(taken.job_id).crashes == 0


def test_old_checkpoints_are_pruned_and_their_files_named(make_queue: MakeQueue) -> None:
    queue = make_queue()
    taken = started(queue)
    trained(queue, taken)
    kept = queue.kept_files(taken.job_id)
    assert {"attempts/1/resume-1-3.ckpt", "attempts/1/best-e1.pth", "attempts/1/best-e2.pth"} <= kept
    assert queue.prune_checkpoints(taken.job_id, taken.attempt, 1) == [
        "attempts/1/resume-2-6.ckpt",
        "attempts/1/resume-1-3.ckpt",
    ]
    assert queue.kept_files(taken.job_id) == {"attempts/1/resume-3-9.ckpt", "attempts/1/best-e2.pth"}
    assert queue.prune_checkpoints(taken.job_id, taken.attempt, 1) == []


def test_an_old_token_changes_no_checkpoint(make_queue: MakeQueue) -> None:
    queue = make_queue()
    first = started(queue)
    trained(queue, first)
    queue.crash(first.job_id, first.attempt, DIED)
    claim(queue)
    newest = queue.checkpoints(first.job_id)[0]
    for write in (
        lambda: queue.resume_at(first.job_id, first.attempt, newest),
        lambda: queue.discard_checkpoint(first.job_id, first.attempt, newest, "x"),
        lambda: queue.prune_checkpoints(first.job_id, first.attempt, 1),
    ):
        with pytest.raises(LostJob):
            write()
    assert len(queue.checkpoints(first.job_id)) == 3


def test_a_retry_goes_on_where_its_parent_was_saved(make_queue: MakeQueue) -> None:
    queue = make_queue()
    parent = started(queue)
    trained(queue, parent)
    queue.record(parent.job_id, parent.attempt, Facts(progress={"resolved": {"threads": 3}}))
    queue.finish(parent.job_id, parent.attempt, Reason("diverged", "NaN"))
    row, _ = queue.submit(make_request(), parent_id=parent.job_id, is_retry=True, data_fingerprint="f")
    assert (row.parent_id, row.resolved) == (parent.job_id, {"threads": 3})
    taken = claim(queue)
    at = taken.checkpoint
    assert at is not None
    assert (at.job_id, at.epoch, at.step) == (parent.job_id, 3, 9)
    queue.resume_at(taken.job_id, taken.attempt, at)
    assert rows(queue, taken.job_id) == (rows(queue, parent.job_id)[0], [1, 2])
    row = queue.get(taken.job_id)
    assert (row.best_epoch, row.best_file) == (2, "attempts/1/best-e2.pth")
    with queue.database.reading() as connection:
        files = sa.select(epoch_row.c.best_file).where(epoch_row.c.job_id == taken.job_id)
        assert connection.execute(files.order_by(epoch_row.c.epoch)).scalars().all() == [
            None,
            "attempts/1/best-e2.pth",
        ]
    # It may die before it has saved anything of its own: the next attempt does all that once more.
    queue.crash(taken.job_id, taken.attempt, DIED)
    again = claim(queue)
    assert again.checkpoint == at
    queue.resume_at(again.job_id, again.attempt, at)
    assert rows(queue, again.job_id) == (rows(queue, parent.job_id)[0], [1, 2])
    assert queue.get(again.job_id).best_file == "attempts/2/best-e2.pth"
    # A corrupt checkpoint of the parent stays the parent's; the child goes on from the one before.
    older = queue.discard_checkpoint(again.job_id, again.attempt, at, "corrupt")
    assert older is not None
    assert (older.job_id, older.epoch) == (parent.job_id, 2)
    assert len(queue.checkpoints(parent.job_id)) == 3
    # And a retry of the retry starts where that would have gone on.
    queue.finish(again.job_id, again.attempt, Reason("diverged", "NaN"))
    queue.submit(make_request(), parent_id=again.job_id, is_retry=True, data_fingerprint="f")
    assert claim(queue).checkpoint == older


@pytest.mark.parametrize(
    ("changed", "fingerprint"), [({"training": {"seed": 9}}, "f"), ({}, "other"), ({}, None)], ids=str
)
def test_a_retry_of_something_else_starts_from_zero(
    make_queue: MakeQueue, changed: dict[str, Any], fingerprint: str | None
) -> None:
    queue = make_queue()
    parent = started(queue)
    trained(queue, parent)
    queue.finish(parent.job_id, parent.attempt, Reason("diverged", "NaN"))
    queue.submit(
        make_request(**changed), parent_id=parent.job_id, is_retry=True, data_fingerprint=fingerprint
    )
    assert claim(queue).checkpoint is None


def test_a_clone_starts_from_zero_and_a_retry_needs_an_end(make_queue: MakeQueue) -> None:
    queue = make_queue()
    parent = started(queue)
    trained(queue, parent)
    with pytest.raises(IllegalTransition):
        queue.submit(make_request(), parent_id=parent.job_id, is_retry=True)
    row, _ = queue.submit(make_request(), parent_id=parent.job_id, data_fingerprint="f")
    assert (row.parent_id, row.inherits_id) == (parent.job_id, None)


def test_start_weights_are_the_best_of_another_job(make_queue: MakeQueue) -> None:
    queue = make_queue()
    source = started(queue)
    request = make_request().model_copy(update={"init_from": source.job_id})
    assert [problem.code for problem in queue.bad_start(request)] == ["no_checkpoint"]
    waits = request.model_copy(update={"depends_on": [source.job_id]})
    assert queue.bad_start(waits) == []
    queue.record(source.job_id, source.attempt, Facts(epochs=[bested(1, 1.0)]))
    assert queue.bad_start(request) == []
    gone = request.model_copy(update={"init_from": "0" * 26})
    with pytest.raises(InvalidRequest):
        queue.submit(gone)
    queue.finish(source.job_id, source.attempt, Reason("completed"))
    queue.submit(request)
    weights = claim(queue).init_from
    assert weights is not None
    assert (weights.job_id, weights.file) == (source.job_id, "attempts/1/best-e1.pth")


def test_a_lease_of_another_host_runs_out_and_ours_is_left_alone(make_queue: MakeQueue) -> None:
    clock = Clock()
    queue = make_queue(clock)
    taken = started(queue)
    assert queue.rescue("another") == []
    clock.advance(3600)
    if queue.database.write_engine.dialect.name == "postgresql":
        # The server's clock is nobody's to turn; let the lease lie in its past.
        with queue.database.writing() as connection:
            connection.exec_driver_sql("UPDATE job SET lease_until = 0")
    assert queue.rescue(OWNER.host) == []
    assert queue.rescue("another") == [(taken.job_id, Status.QUEUED)]
    assert queue.rescue("another") == []
    with pytest.raises(LostJob):
        queue.record(taken.job_id, taken.attempt, Facts())
    assert [row.id for row in queue.running(OWNER.host)] == []
