"""The worker as a real process: jobs train, crash, are cancelled and rescued; nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from app.jobs.metrics import since
from app.jobs.queue import Queue
from app.jobs.states import Status
from tests.acceptance.site import ENDLESS, QUICK, Site, ended, log_of, open_queue, runner_pid, submit, worker
from tests.factories import make_request, write_dataset
from tests.failpoints import Failpoints
from tests.processes import Process, eventually, is_gone, started
from worker.models.load import load


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with open_queue(tmp_path) as queue:
        yield queue


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    with open_queue(root) as queue, worker(root, **Failpoints(root / "points").environment) as process:
        yield Site(root, queue, process)


@pytest.fixture
def site(open_site: Site) -> Iterator[Site]:
    yield open_site
    for row in open_site.queue.page()[0]:
        if row.finished_at is None:
            open_site.queue.cancel(row.id)
            ended(open_site.queue, row.id)


def test_a_job_trains_to_its_end(site: Site) -> None:
    job_id = submit(site.queue)
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.SUCCEEDED, "completed")
    log = log_of(site.root, row)
    assert [line.split()[0] for line in log.splitlines()[:4]] == ["[JOB]", "[DATA]", "[MODEL]", "[EPOCH]"]
    assert log.startswith(f"[JOB] {job_id} attempt 1 | ")
    assert " | train 317 windows 1970-01-01..1970-01-01 | val 77 windows " in log
    assert " parameters | data.horizon_s=0.0 data.window=4 model.d_model=8 " in log
    assert log.count("\n[TIME] Epoch ") == 2
    assert log.splitlines()[-1] == "[END] succeeded (completed)"
    assert "[SAVE] Val loss improved (inf -->" in log
    assert (site.root / "logs" / f"{row.log_name}.png").read_bytes().startswith(b"\x89PNG")
    with site.queue.database.reading() as connection:
        metrics = since(connection, job_id)
    assert [epoch["epoch"] for epoch in metrics.epochs] == [1, 2]
    assert metrics.batches["batch"][:3] == [0, 10, 20]
    assert (row.epoch, row.batch) == (2, row.batches)
    assert row.batches > metrics.batches["batch"][-1], "the last row is not the last batch"
    assert row.resolved["device"] == "cpu"
    best = site.root / "data" / "jobs" / job_id / "saimp_best.pth"
    model, sidecar = load(best)
    model.load_state_dict(torch.load(best, weights_only=True))
    assert sidecar["epoch"] == row.best_epoch
    assert sidecar["sha256"] == row.best_sha256
    assert sidecar["metrics"]["val_loss"] == row.best_val_loss
    champion = json.loads((site.root / "data" / "saimp_best.json").read_text())
    assert champion["comparison_key"] == sidecar["comparison_key"]
    assert champion["metrics"]["val_loss"] <= sidecar["metrics"]["val_loss"]


def test_a_killed_runner_is_recorded_and_the_job_trains_again(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS)
    os.kill(runner_pid(site.queue, site.process, job_id), signal.SIGKILL)
    eventually(lambda: site.queue.get(job_id).attempt == 2, what="the second attempt")
    crashed = [event for event in site.queue.events(job_id) if event.kind == "crashed"]
    assert "SIGKILL" in crashed[0].data["message"]

    def kinds() -> list[str]:
        return [event.kind for event in site.queue.events(job_id)]

    eventually(lambda: "resumed" in kinds(), what="training again")
    assert kinds().index("resumed") > kinds().index("crashed")
    assert site.process.popen.poll() is None


def test_a_poison_job_ends_and_the_queue_goes_on(site: Site) -> None:
    poison = submit(site.queue, **ENDLESS, max_attempts=1)
    after = submit(site.queue)
    os.kill(runner_pid(site.queue, site.process, poison), signal.SIGSEGV)
    row = ended(site.queue, poison)
    assert (row.status, row.reason_code) == (Status.FAILED, "native_crash")
    assert "SIGSEGV" in row.reason_message
    assert "Fatal Python error: Segmentation fault" in log_of(site.root, row)
    assert ended(site.queue, after).status == Status.SUCCEEDED


def test_a_gpu_that_fails_costs_one_process_and_the_job_goes_on_from_its_checkpoint(site: Site) -> None:
    Failpoints(site.root / "points").arm("train.micro_batch", "cuda", nth=200)
    job_id = submit(site.queue, training={"epochs": 3, "threads": 1}, checkpoint={"every_s": 0})
    row = ended(site.queue, job_id)
    assert (row.status, row.attempt) == (Status.SUCCEEDED, 2)
    events = {event.kind: event.data for event in site.queue.events(job_id)}
    assert events["crashed"]["code"] == "native_crash"
    assert "CUDA error: unspecified launch failure" in events["crashed"]["message"]
    assert (events["resumed"]["epoch"], events["resumed"]["batch"]) > (1, 0)
    assert "AcceleratorError" in log_of(site.root, row)


def test_a_gpu_that_fails_every_time_ends_the_job(site: Site) -> None:
    Failpoints(site.root / "points").arm("train.micro_batch", "cuda")
    row = ended(site.queue, submit(site.queue, max_attempts=1))
    assert (row.status, row.reason_code) == (Status.FAILED, "native_crash")
    assert log_of(site.root, row).splitlines()[-1] == "[END] failed (native_crash)"


def test_a_cancel_is_obeyed_and_keeps_the_best(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS)
    pid = runner_pid(site.queue, site.process, job_id)
    site.queue.cancel(job_id)
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.CANCELLED, "user")
    eventually(lambda: is_gone(pid), what="the end of the runner")
    assert (site.root / "data" / "jobs" / job_id / "saimp_best.pth").exists()
    assert log_of(site.root, row).splitlines()[-1] == "[END] cancelled (user)"


def test_a_stopped_runner_is_cancelled_all_the_same(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS)
    os.kill(runner_pid(site.queue, site.process, job_id), signal.SIGSTOP)
    site.queue.cancel(job_id)
    row = ended(site.queue, job_id)
    assert row.status == Status.CANCELLED
    assert log_of(site.root, row).splitlines()[-1] == "[END] cancelled (user)"


def test_a_runner_goes_first_when_memory_is_short_and_shows_its_stacks_when_asked(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS)
    pid = runner_pid(site.queue, site.process, job_id)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "800"
    os.kill(pid, signal.SIGUSR1)
    row = site.queue.get(job_id)
    eventually(lambda: "most recent call first" in log_of(site.root, row), what="the stacks in the log")
    site.queue.cancel(job_id)
    assert ended(site.queue, job_id).status == Status.CANCELLED


@pytest.mark.parametrize("way", ["sigterm", "ctrl_c"])
def test_a_graceful_stop_puts_the_job_back_and_costs_no_crash(tmp_path: Path, queue: Queue, way: str) -> None:
    job_id = submit(queue, **ENDLESS)
    with worker(tmp_path) as process:
        runner_pid(queue, process, job_id)
        if way == "ctrl_c":  # a terminal signals its whole foreground group
            os.killpg(process.popen.pid, signal.SIGINT)
            assert process.popen.wait(30) == 0
        else:
            assert process.stop() == 0
    row = queue.get(job_id)
    assert (row.status, row.reason_code, row.crashes) == (Status.QUEUED, "preempted", 0)
    assert queue.workers() == []


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "sigstopped"])
def test_a_killed_supervisor_takes_its_runner_along_and_the_next_one_goes_on(
    tmp_path: Path, queue: Queue, frozen: bool
) -> None:
    job_id = submit(queue, **ENDLESS)
    with worker(tmp_path) as process:
        pid = runner_pid(queue, process, job_id)
        if frozen:
            os.kill(pid, signal.SIGSTOP)
        process.popen.kill()
        eventually(lambda: is_gone(pid), within_s=2, what="the end of the orphan")
        process.popen.wait(10)
    with worker(tmp_path) as process:
        eventually(lambda: queue.get(job_id).attempt == 2, what="the rescue")
        queue.cancel(job_id)
        assert ended(queue, job_id).status == Status.CANCELLED


def test_a_second_worker_leaves_with_a_clear_line(tmp_path: Path, queue: Queue) -> None:
    with worker(tmp_path) as process, started("-m", "worker", root=tmp_path) as second:
        assert second.popen.wait(30) == 0
        assert f"another worker serves this data root: process {process.popen.pid}" in second.output


def test_the_running_time_is_limited(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS, limits={"max_runtime_s": 1.0})
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "max_runtime")
    assert log_of(site.root, row).splitlines()[-1] == "[END] failed (max_runtime)"


def test_data_that_changed_since_the_submit_end_the_job(site: Site) -> None:
    job_id = str(site.queue.submit(make_request(**QUICK), data_fingerprint="0" * 64)[0].id)
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "data_changed")


def test_features_that_are_not_finite_end_the_job_with_file_and_row(site: Site) -> None:
    folder = site.root / "data" / "holes"
    write_dataset(folder, rows=400, bad_row=123)
    job_id = submit(site.queue, data={"path": "holes", "window": 4})
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "data_invalid")
    assert "part-000.parquet" in row.reason_message
    assert "123" in row.reason_message


def test_a_missing_gpu_is_said(site: Site) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    job_id = submit(site.queue, device="cuda:7")
    row = ended(site.queue, job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "config_invalid")


def test_an_empty_database_is_waited_for_then_named(tmp_path: Path) -> None:
    with started("-m", "worker", root=tmp_path) as process:
        assert process.popen.wait(60) == 1
        assert "saimp migrate" in process.output


def test_the_rows_that_outlive_a_crash_are_those_of_an_uninterrupted_run(site: Site) -> None:
    sections: dict[str, Any] = {
        "training": {"epochs": 8, "threads": 1},
        "early_stopping": {"patience": None},
    }
    job_id = submit(site.queue, **sections)
    clean = submit(site.queue, **sections)
    os.kill(runner_pid(site.queue, site.process, job_id), signal.SIGKILL)
    assert ended(site.queue, job_id).attempt == 2
    assert ended(site.queue, clean).attempt == 1
    with site.queue.database.reading() as connection:
        crashed, whole = since(connection, job_id), since(connection, clean)
    for column in ("epoch", "batch", "step", "loss", "accuracy", "lr", "grad_norm"):
        assert crashed.batches[column] == whole.batches[column]
    for ours, theirs in zip(crashed.epochs, whole.epochs, strict=True):
        assert ours["val_loss"] == theirs["val_loss"]
    assert site.queue.get(job_id).best_sha256 == site.queue.get(clean).best_sha256


def test_the_server_that_forks_runners_has_one_thread(site: Site) -> None:
    job_id = submit(site.queue, **ENDLESS)
    runner = psutil.Process(runner_pid(site.queue, site.process, job_id))
    server = runner.parent()
    assert server is not None
    assert server.parent() == psutil.Process(site.process.popen.pid)
    assert server.num_threads() == 1


def test_two_slots_train_two_jobs_and_each_serves_its_own(tmp_path: Path, queue: Queue) -> None:
    devices = "cpu:0,cpu:1"
    jobs = [submit(queue, **ENDLESS) for _ in range(3)]

    def slot(device: str) -> AbstractContextManager[Process]:
        return started("-m", "worker", "--device", device, root=tmp_path, SAIMP_DEVICES=devices)

    with slot("cpu:0") as first, slot("cpu:1") as second:
        eventually(lambda: all((queue.get(job).epoch or 0) >= 2 for job in jobs[:2]), what="two trainings")
        rows = [queue.get(job) for job in jobs]
        assert [row.attempt for row in rows] == [1, 1, 0]
        assert {row.slot for row in rows[:2]} == {worker.slot for worker in queue.workers()}
        with slot("cpu:1") as third:
            assert third.popen.wait(60) == 0
            assert (
                f"another worker serves cpu:1 on this data root: process {second.popen.pid}" in third.output
            )
        owners = {row.owner["pid"]: row.id for row in rows[:2]}
        first.popen.kill()
        first.popen.wait()
        with slot("cpu:0"):
            dead, alive = owners[first.popen.pid], owners[second.popen.pid]
            eventually(lambda: queue.get(dead).attempt == 2, what="the rescue")
            assert queue.get(alive).attempt == 1
            assert queue.get(jobs[2]).attempt == 0
