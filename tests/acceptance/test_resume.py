"""Exact resume through everything that can stop a job: what survives is that of an uninterrupted run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.datasets.schema import open_dataset
from app.jobs.metrics import BATCH_COLUMNS, since
from app.jobs.queue import Queue, Row
from app.jobs.states import Status
from tests.acceptance.site import (
    QUICK,
    Site,
    ended,
    last_runner_pid,
    log_of,
    open_queue,
    runner_pid,
    submit,
    worker,
)
from tests.factories import make_request
from tests.processes import eventually

EPOCHS = 8
LONG: dict[str, Any] = {
    **QUICK,
    "training": {"epochs": EPOCHS, "threads": 1, "deterministic": True, "log_every": 1},
    "early_stopping": {"patience": None},
    "checkpoint": {"every_s": 0, "keep_last": 2},
}
NUMBERS = tuple(name for name in BATCH_COLUMNS if name != "time")
SCORES = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "best", "lr", "confusion")


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    with open_queue(root) as queue, worker(root) as process:
        yield Site(root, queue, process)


@pytest.fixture(scope="module")
def whole(open_site: Site) -> Row:
    """The job as it ends when nothing disturbs it."""
    return ended(open_site.queue, submit(open_site.queue, **LONG))


@pytest.fixture
def site(open_site: Site) -> Iterator[Site]:
    yield open_site
    for row in open_site.queue.page()[0]:
        if row.finished_at is None:
            open_site.queue.cancel(row.id)
            ended(open_site.queue, row.id)


def assert_same(queue: Queue, row: Row, whole: Row, other: Queue | None = None) -> None:
    """Compare weights and numeric columns bit for bit."""
    assert row.status == whole.status == Status.SUCCEEDED
    assert row.best_sha256 == whole.best_sha256
    with queue.database.reading() as connection:
        ours = since(connection, row.id)
    with (other or queue).database.reading() as connection:
        theirs = since(connection, whole.id)
    for name in NUMBERS:
        assert ours.batches[name] == theirs.batches[name], name
    for one, another in zip(ours.epochs, theirs.epochs, strict=True):
        assert [one[name] for name in SCORES] == [another[name] for name in SCORES]


def resumed(queue: Queue, job_id: str) -> list[dict[str, Any]]:
    return [event.data for event in queue.events(job_id) if event.kind == "resumed"]


def test_kills_in_mid_epoch_leave_the_numbers_of_an_uninterrupted_run(site: Site, whole: Row) -> None:
    job_id = submit(site.queue, **LONG)
    for epoch in (2, 4, 6):
        os.kill(runner_pid(site.queue, site.process, job_id, epoch=epoch), signal.SIGKILL)
        eventually(lambda: site.queue.get(job_id).reason_code == "backoff" or resumed(site.queue, job_id))
    row = ended(site.queue, job_id)
    assert row.attempt >= 3
    assert row.crashes == 0, "progress resets the count"
    # The first kill may find no newer one than that of the trained first epoch.
    assert all(at["epoch"] > 1 or at["is_epoch_trained"] for at in resumed(site.queue, job_id))
    assert_same(site.queue, row, whole)
    assert "[RESUME] Epoch" in log_of(site.root, row)


def test_pause_frees_the_runner_and_resume_goes_on_exactly(site: Site, whole: Row) -> None:
    job_id = submit(site.queue, **{**LONG, "checkpoint": {"every_s": None, "keep_last": 1}})
    runner_pid(site.queue, site.process, job_id, epoch=4)
    site.queue.pause(job_id)
    eventually(lambda: site.queue.get(job_id).status == Status.PAUSED, within_s=10, what="the pause")
    assert site.queue.get(job_id).crashes == 0
    between = submit(site.queue)
    assert ended(site.queue, between).status == Status.SUCCEEDED
    site.queue.resume(job_id)
    row = ended(site.queue, job_id)
    assert len(resumed(site.queue, job_id)) == 1
    assert resumed(site.queue, job_id)[0]["epoch"] >= 4
    assert_same(site.queue, row, whole)


def test_a_retry_goes_on_from_the_parents_newest_checkpoint(site: Site, whole: Row) -> None:
    request = make_request(**LONG)
    fingerprint = open_dataset(site.root / "data", request.data).fingerprint
    parent = str(site.queue.submit(request, data_fingerprint=fingerprint)[0].id)
    runner_pid(site.queue, site.process, parent, epoch=5)
    site.queue.cancel(parent)
    ended(site.queue, parent)
    child = str(
        site.queue.submit(request, data_fingerprint=fingerprint, parent_id=parent, is_retry=True)[0].id
    )
    row = ended(site.queue, child)
    assert row.parent_id == parent
    assert resumed(site.queue, child)[0]["epoch"] >= 4
    assert_same(site.queue, row, whole)


def test_a_damaged_checkpoint_is_not_loaded_and_the_one_before_it_is(site: Site, whole: Row) -> None:
    job_id = submit(site.queue, **{**LONG, "checkpoint": {"every_s": 0, "keep_last": 3}})
    runner_pid(site.queue, site.process, job_id, epoch=4)
    site.queue.pause(job_id)
    eventually(lambda: site.queue.get(job_id).status == Status.PAUSED, what="the pause")
    newest = site.queue.checkpoints(job_id)[0]
    path = site.root / "data" / "jobs" / job_id / newest.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    site.queue.resume(job_id)
    row = ended(site.queue, job_id)
    assert "checkpoint_discarded" in [event.kind for event in site.queue.events(job_id)]
    assert_same(site.queue, row, whole)


def test_only_the_files_that_count_are_kept(site: Site, whole: Row) -> None:
    folder = site.root / "data" / "jobs" / whole.id
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    kept = site.queue.kept_files(whole.id)
    assert kept <= files
    sidecars = {name.replace(".pth", ".json") for name in kept if name.endswith(".pth")}
    assert files - kept - sidecars == {"saimp_best.pth", "saimp_best.json", "report.json", "report.md"}
    assert len([name for name in kept if "/resume-" in name]) == 2


def test_a_killed_worker_and_a_stopped_one_lose_nothing(tmp_path: Path, site: Site, whole: Row) -> None:
    with open_queue(tmp_path) as queue:
        job_id = submit(queue, **LONG)
        with worker(tmp_path) as process:
            runner_pid(queue, process, job_id, epoch=3)
            process.popen.kill()
            process.popen.wait(10)
        with worker(tmp_path) as process:
            eventually(lambda: queue.get(job_id).attempt == 2, what="the rescue")
            runner_pid(queue, process, job_id, epoch=6)
            assert process.stop() == 0
        assert queue.get(job_id).status == Status.QUEUED
        with worker(tmp_path) as process:
            row = ended(queue, job_id)
            assert last_runner_pid(process, job_id) > 0
        assert row.attempt == 3
        assert_same(queue, row, whole, site.queue)
