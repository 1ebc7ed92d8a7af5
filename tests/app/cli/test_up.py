"""`saimp up` as real processes: it starts, it stops, it leaves nothing behind."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.client import Client
from tests.processes import Process, eventually, is_gone, started

LISTENING = "listening on "


@contextmanager
def up(root: Path, *options: str) -> Iterator[tuple[Process, str, list[int]]]:
    """Run `saimp up` until both parts are there: (process, URL, the pids it started)."""
    with started("-m", "app.cli.main", "up", "--port", "0", *options, root=root) as process:
        url = process.says(LISTENING).removeprefix(LISTENING)
        process.says("worker ready")
        children = psutil.Process(process.popen.pid).children(recursive=True)
        yield process, url, [child.pid for child in children]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_stops_both_parts(tmp_path: Path, sign: signal.Signals) -> None:
    with up(tmp_path) as (process, url, pids):
        with Client(url) as client:
            assert client.jobs()["data"] == []
        assert len(pids) >= 2
        assert process.stop(sign) == 0
        assert all(is_gone(pid) for pid in pids)
        assert "worker stopped" in process.output
        assert "Traceback" not in process.output


def test_nothing_survives_a_kill(tmp_path: Path) -> None:
    with up(tmp_path) as (process, _, pids):
        process.popen.kill()
        process.popen.wait(10)
        eventually(lambda: all(is_gone(pid) for pid in pids), within_s=15, what="the end of the children")


def test_one_part_that_ends_takes_the_other_along(tmp_path: Path) -> None:
    with up(tmp_path) as (process, _, pids):
        (api,) = [pid for pid in pids if psutil.Process(pid).cmdline()[-1] == "api"]
        psutil.Process(api).kill()
        assert process.popen.wait(30) == 137
        assert "api has ended (SIGKILL)" in process.output
        assert all(is_gone(pid) for pid in pids)


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    with up(tmp_path) as (process, url, pids):
        (first,) = [pid for pid in pids if psutil.Process(pid).cmdline()[-2:] == ["-m", "worker"]]
        psutil.Process(first).kill()
        process.says("worker was killed (SIGKILL); starting it again")
        with Client(url) as client:
            assert client.jobs()["data"] == [], "the API has served all along"
        eventually(lambda: process.output.count("worker ready") == 2, what="the second worker")
        assert process.stop() == 0


def test_a_taken_port_is_said_and_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started("-m", "app.cli.main", "up", "--port", port, root=tmp_path) as process:
            assert process.popen.wait(60) == 1
            assert re.search(r"cannot listen on 127\.0\.0\.1:\d+", process.output)


def test_roots_and_port_come_from_options(tmp_path: Path) -> None:
    options = ("--data-root", str(tmp_path / "d"), "--logs-root", str(tmp_path / "l"), "--host", "localhost")
    with up(tmp_path, *options, "--auth", "off") as (process, _, _):
        assert (tmp_path / "d" / "saimp.db").exists()
        assert process.stop() == 0


def test_a_wrong_setting_is_a_usage_error(tmp_path: Path) -> None:
    with started("-m", "app.cli.main", "up", root=tmp_path, SAIMP_PORTT="1") as process:
        assert process.popen.wait(30) == 2
        assert "did you mean SAIMP_PORT?" in process.output


def test_parts_run_alone(tmp_path: Path) -> None:
    with started("-m", "app.cli.main", "migrate", root=tmp_path) as process:
        assert process.popen.wait(30) == 0, process.output
    with started("-m", "app.cli.main", "worker", root=tmp_path) as worker:
        worker.says("worker ready")
        with started("-m", "app.cli.main", "api", "--port", "0", root=tmp_path) as api:
            with Client(api.says(LISTENING).removeprefix(LISTENING)) as client:
                assert client.health()
            assert api.stop() == 0
        assert worker.stop() == 0
