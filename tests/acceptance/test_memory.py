"""Out of memory through the whole service: a smaller micro-batch and the same curve, or a clear ending."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from app.jobs.queue import Queue, Row
from app.jobs.states import Status
from app.jobs.tables import epoch_row
from tests.acceptance.site import Site, ended, log_of, open_queue, submit
from tests.processes import started


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("memory")
    with (
        open_queue(root) as queue,
        started("-m", "worker", root=root, SAIMP_CUSTOM_MODELS="tests.worker") as process,
    ):
        process.says("worker ready")
        yield Site(root, queue, process)


def greedy(most: int, where: str = "gpu", **sections: Any) -> dict[str, Any]:
    """Describe a job whose model has room for `most` windows at once."""
    params = {"most": most, "where": where}
    training = {"epochs": 2, "threads": 1, "batch_size": 8, "accumulation_steps": 2}
    return {
        "model": {"name": "custom", "target": "tests.worker.models.custom_nets:Greedy", "params": params},
        **sections,
        "training": {**training, **sections.get("training", {})},
    }


def told(queue: Queue, job_id: str, kind: str) -> list[dict[str, Any]]:
    return [event.data for event in queue.events(job_id) if event.kind == kind]


def curve(queue: Queue, job_id: str) -> list[Row]:
    with queue.database.reading() as connection:
        return list(
            connection.execute(
                epoch_row.select().where(epoch_row.c.job_id == job_id).order_by(epoch_row.c.epoch)
            )
        )


def test_with_memory_for_half_its_batch_a_job_ends_with_the_same_curve(site: Site) -> None:
    plenty, half = submit(site.queue, **greedy(8)), submit(site.queue, **greedy(4))
    row = ended(site.queue, half)
    assert row.status == Status.SUCCEEDED, row.reason_message
    [recovered] = told(site.queue, half, "oom_recovered")
    assert (recovered["step"], recovered["batch_size"], recovered["during"]) == (1, 4, "training")
    assert "[OOM] Step 1 again with micro-batches of 4: CUDA out of memory" in log_of(site.root, row)
    for found, expected in zip(curve(site.queue, half), curve(site.queue, plenty), strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-5)
        assert found.confusion == expected.confusion


def test_later_jobs_of_the_same_needs_start_at_the_size_that_worked(site: Site) -> None:
    first = submit(site.queue, **greedy(2, tags=["first"]))
    later = submit(site.queue, **greedy(2, optimizer={"lr": 0.01}))
    fixed = submit(site.queue, **greedy(2, training={"deterministic": True}))
    other = submit(site.queue, **greedy(2, training={"accumulation_steps": 4}))
    assert ended(site.queue, other).status == Status.SUCCEEDED
    starts = [site.queue.get(job_id).resolved["batch_size"] for job_id in (first, later, fixed, other)]
    assert starts == [8, 2, 8, 8]
    counts = [len(told(site.queue, job_id, "oom_recovered")) for job_id in (first, later, fixed, other)]
    assert counts == [2, 0, 2, 2]
    [warned] = told(site.queue, later, "warning")
    assert warned["code"] == "smaller_batch"
    assert "micro-batches of 2, not 8" in warned["message"]


def test_out_of_memory_in_an_optimizer_step_the_next_attempt_is_smaller(site: Site) -> None:
    job_id = submit(site.queue, **greedy(2, "step", checkpoint={"every_s": 0}))
    row = ended(site.queue, job_id)
    assert row.status == Status.SUCCEEDED, row.reason_message
    assert (row.attempt, row.crashes) == (3, 0)
    rungs = [
        (data["during"], data["rung"]["batch_size"]) for data in told(site.queue, job_id, "oom_recovered")
    ]
    assert rungs == [("the optimizer step", 4), ("the optimizer step", 2)]
    # It went on from where it was, not from the start.
    assert [data["step"] for data in told(site.queue, job_id, "resumed")] == [4, 8]
    log = log_of(site.root, row)
    assert "[OOM] Optimizer step 6 is cut off; the next attempt has micro-batches of 4" in log
    assert log.count("[END] queued (backoff)") == 2
    plain = submit(site.queue, **greedy(8))
    assert ended(site.queue, plain).status == Status.SUCCEEDED
    for found, expected in zip(curve(site.queue, job_id), curve(site.queue, plain), strict=True):
        assert found.val_loss == pytest.approx(expected.val_loss, rel=1e-5)


def test_a_gpu_too_small_for_one_window_is_a_clear_ending_with_evidence(site: Site) -> None:
    job_id = submit(site.queue, **greedy(0))
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "gpu_out_of_memory")
    assert "with a batch of 1; none went through" in row.reason_message
    [evidence] = told(site.queue, job_id, "gpu_out_of_memory")
    assert evidence["batch_size"] == 1
    assert evidence["effective_batch"] == 16
    assert evidence["activation_checkpointing"]
    # What never worked is nobody's start.
    again = submit(site.queue, **greedy(0))
    ended(site.queue, again)
    assert site.queue.get(again).resolved["batch_size"] == 8


def test_memory_of_the_machine_is_another_matter(site: Site) -> None:
    job_id = submit(site.queue, **greedy(4, "host"))
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "host_out_of_memory")
    assert told(site.queue, job_id, "oom_recovered") == []
