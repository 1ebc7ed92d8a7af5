"""`saimp up` as real processes: it starts, it stops, it leaves nothing behind."""

from __future__ import annotations

import os
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


def part(pids: list[int], *ending: str) -> psutil.Process:
    """Find the process whose command ends so."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    (one,) = [process for process in found if process.cmdline()[-len(ending) :] == list(ending)]
    return one


def test_a_killed_api_is_started_again_at_its_port(tmp_path: Path) -> None:
    with up(tmp_path) as (process, url, pids), Client(url) as client:
        part(pids, "api").kill()
        process.says("api has ended (SIGKILL); starting it again in 1 s")
        eventually(lambda: process.output.count(f"{LISTENING}{url}") == 2, what="the second API")
        assert client.jobs()["data"] == []
        assert process.output.count("worker ready") == 1
        assert process.stop() == 0


def test_an_api_that_leaves_by_itself_is_started_again(tmp_path: Path) -> None:
    with up(tmp_path) as (process, url, pids):
        part(pids, "api").terminate()
        process.says("api has ended (exit code 0); starting it again in 1 s")
        eventually(lambda: process.output.count(f"{LISTENING}{url}") == 2, what="the second API")
        assert process.stop() == 0


def test_a_killed_worker_is_started_again_and_leaves_no_zombie(tmp_path: Path) -> None:
    with up(tmp_path) as (process, url, pids):
        part(pids, "-m", "worker").kill()
        process.says("worker has ended (SIGKILL); starting it again in 1 s")
        with Client(url) as client:
            assert client.jobs()["data"] == [], "the API has served all along"
        eventually(lambda: process.output.count("worker ready") == 2, what="the second worker")
        left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        assert not [one for one in left if one.status() == psutil.STATUS_ZOMBIE]
        assert process.stop() == 0


@pytest.mark.parametrize("command", ["up", "api"])
def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started("-m", "app.cli.main", command, "--port", port, root=tmp_path) as process:
            assert process.popen.wait(60) == 1
            assert f"port {port} of 127.0.0.1 is taken: process {os.getpid()} (" in process.output
            assert f"--port {int(port) + 1}" in process.output
    assert not (tmp_path / "data").exists()


def test_a_second_one_is_told_of_the_first_and_leaves_it_alone(tmp_path: Path) -> None:
    with up(tmp_path) as (first, url, pids):
        port = url.rpartition(":")[2]
        with started("-m", "app.cli.main", "up", "--port", port, root=tmp_path) as second:
            assert second.popen.wait(60) == 1
            said = second.output
            assert re.search(r"the data root .* is served already, by worker (\d+) since", said)
            assert int(re.findall(r"by worker (\d+)", said)[0]) in pids
            assert "a SAIMP Train" in said, "the port is told of too"
            assert "Traceback" not in said
        with Client(url) as client:
            assert client.health()
        assert first.stop() == 0


def test_an_address_that_is_not_ours_is_said(tmp_path: Path) -> None:
    with started("-m", "app.cli.main", "up", "--host", "192.0.2.1", root=tmp_path) as process:
        assert process.popen.wait(60) == 1
        assert "cannot listen on 192.0.2.1:8000" in process.output


def test_roots_and_port_come_from_options(tmp_path: Path) -> None:
    options = ("--data-root", str(tmp_path / "d"), "--logs-root", str(tmp_path / "l"), "--host", "localhost")
    with up(tmp_path, *options, "--auth", "off") as (process, _, _):
        assert (tmp_path / "d" / "saimp.db").exists()
        assert process.stop() == 0


def test_a_wrong_setting_is_a_usage_error(tmp_path: Path) -> None:
    with started("-m", "app.cli.main", "up", root=tmp_path, SAIMP_PORTT="1") as process:
        assert process.popen.wait(30) == 2
        assert "did you mean SAIMP_PORT?" in process.output


def test_each_device_has_its_worker(tmp_path: Path) -> None:
    settings = {"SAIMP_DEVICES": "cpu:0,cpu:1"}
    with started("-m", "app.cli.main", "up", "--port", "0", root=tmp_path, **settings) as process:
        process.says(LISTENING)
        eventually(lambda: process.output.count("worker ready") == 2, what="both workers")
        workers = {
            child.cmdline()[-1]: child.pid
            for child in psutil.Process(process.popen.pid).children()
            if child.cmdline()[-2] == "--device"
        }
        assert set(workers) == {"cpu:0", "cpu:1"}
        psutil.Process(workers["cpu:1"]).kill()
        process.says("worker cpu:1 has ended (SIGKILL); starting it again in 1 s")
        eventually(lambda: process.output.count("worker ready") == 3, what="the worker again")
        assert psutil.Process(workers["cpu:0"]).is_running()
        assert process.stop() == 0


@pytest.mark.parametrize("options", [(), ("--device", "cuda:7")], ids=["no slot", "an unknown one"])
def test_a_worker_alone_must_say_which_slot(tmp_path: Path, options: tuple[str, ...]) -> None:
    settings = {"SAIMP_DEVICES": "cpu:0,cpu:1"}
    with started("-m", "app.cli.main", "worker", *options, root=tmp_path, **settings) as process:
        assert process.popen.wait(60) == 2
        assert "say which slot, one of 'cpu:0,cpu:1'" in process.output


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
