"""A fork server that is stopped (SIGSTOP) keeps nobody waiting: a new one takes its place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.jobs.queue import Queue
from app.jobs.states import Status
from tests.acceptance.site import ENDLESS, ended, open_queue, runner_pid, submit, worker
from tests.processes import Process, eventually, is_gone


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with open_queue(tmp_path) as queue:
        yield queue


def stop_server(process: Process) -> int:
    """Stop the fork server of a worker, and return its pid."""
    children = psutil.Process(process.popen.pid).children()
    (server,) = [child for child in children if "multiprocessing.forkserver" in " ".join(child.cmdline())]
    os.kill(server.pid, signal.SIGSTOP)
    eventually(lambda: server.status() == psutil.STATUS_STOPPED, what="the stop")
    return int(server.pid)


def test_a_job_starts_in_spite_of_a_stopped_server(queue: Queue, tmp_path: Path) -> None:
    with worker(tmp_path) as process:
        server = stop_server(process)
        row = ended(queue, submit(queue))
        assert (row.status, row.attempt) == (Status.SUCCEEDED, 1), "it costs the job nothing"
        assert "the fork server does not answer" in process.output
        assert is_gone(server)
        assert process.stop() == 0


def test_a_stopped_server_keeps_no_running_job_from_a_cancel(queue: Queue, tmp_path: Path) -> None:
    with worker(tmp_path) as process:
        job_id = submit(queue, **ENDLESS)
        runner = runner_pid(queue, process, job_id)
        stop_server(process)
        queue.cancel(job_id)
        assert ended(queue, job_id).reason_code == "user"
        assert is_gone(runner)
        assert ended(queue, submit(queue)).status == Status.SUCCEEDED
        assert process.stop() == 0


def test_a_worker_leaves_no_stopped_server_behind(queue: Queue, tmp_path: Path) -> None:
    with worker(tmp_path) as process:
        server = stop_server(process)
        assert process.stop() == 0
        eventually(lambda: is_gone(server), what="the end of the server")
