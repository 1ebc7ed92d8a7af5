"""A warm process that forks APIs and workers in milliseconds: a rig cannot import torch for each kill.

Reads commands from stdin, one JSON object a line ({"role", "settings", "output", ...}), and writes what
became of them to stdout: {"pid"} when a process is there, {"ended", "code"} when one has ended. It ends, and
all it forked with it, when its stdin does.

What it forks runs the code of the product: `app.main.serve` and `worker.supervisor.main`, the latter with the
fork server of its runners forked too. Different from service are: short backoffs and beats, a clock that may
be wrong, and a witness: a lock that every runner holds on its job for as long as it lives.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing.connection
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

from worker.spawn import SERVER_ENVIRONMENT

os.environ.update(SERVER_ENVIRONMENT)

import worker.runner
import worker.supervisor
from app import failpoints, main, settings
from app.db import Database
from app.jobs.files import Paths
from app.jobs.queue import Queue, running
from tests.rig.witness import bear_witness
from worker.assignment import Assignment
from worker.entry import PR_SET_PDEATHSIG, Orders

_libc = ctypes.CDLL(None)
BEAT_S = 0.5
TRUST_S = 0.1  # how long after its start a worker leaves the jobs of other hosts alone
BACKOFF_S = (0.0, 0.05, 0.1)

Command = dict[str, Any]


def serve() -> None:
    """Take commands until stdin ends."""
    resource_tracker.ensure_running()  # else each worker would start its own
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.set_wakeup_fd(wake_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    alive: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        pending = b""
        while True:
            for key, _ in selector.select():
                if key.fd == wake_r:
                    os.read(wake_r, 4096)
                    _reap(alive)
                    continue
                chunk = os.read(0, 1 << 16)
                if not chunk:
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    pid = _fork(json.loads(line), [selector.fileno(), wake_r, wake_w])
                    alive.add(pid)
                    _say({"pid": pid})


def _say(news: dict[str, int]) -> None:
    os.write(1, json.dumps(news).encode() + b"\n")


def _reap(alive: set[int]) -> None:
    for pid in list(alive):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            alive.remove(pid)
            _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _fork(command: Command, ours: list[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in ours:
            os.close(fd)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        output = os.open(command["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(command["settings"])
        failpoints._folder = command.get("failpoints")
        running.BACKOFF_S = BACKOFF_S
        code = ROLES[command["role"]](command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int):
            print(end.code, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _api(_command: Command) -> int:
    main.serve(settings.load())
    return 0


def _worker(command: Command) -> int:
    worker.supervisor.BEAT_S = BEAT_S
    worker.supervisor.LEASE_S = TRUST_S  # type: ignore[attr-defined]
    witness = Path(command["witness"])
    ahead = timedelta(seconds=command.get("clock_ahead_s", 0.0))

    def queue_of(database: Database, *, paths: Paths) -> Queue:
        return Queue(database, lambda: datetime.now(UTC) + ahead, paths)

    worker.supervisor.Queue = queue_of  # type: ignore[assignment,attr-defined]
    worker.runner.run = _witnessed(worker.runner.run, witness)
    forkserver.ForkServer.ensure_running = _ensure_forked  # type: ignore[assignment]
    forkserver._forkserver.ensure_running()  # before there are locks to inherit
    return worker.supervisor.main()


ROLES = {"api": _api, "worker": _worker}


def _ensure_forked(server: Any) -> None:
    """Have a fork server, forked from this process, which has imported all it must."""
    if server._forkserver_pid is not None:
        return
    address = multiprocessing.connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        alive_r, alive_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(alive_w)
            with suppress(SystemExit):
                forkserver.main(listener.fileno(), alive_r, [])
            os._exit(0)
        os.close(alive_r)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive_w, pid


def _witnessed(run: Callable[..., None], folder: Path) -> Callable[..., None]:
    """Let each runner bear witness that it is alone with its job."""

    def witnessed(assignment: Assignment, send: Callable[[bytes], None], orders: Orders) -> None:
        bear_witness(folder, assignment.job_id, assignment.attempt)
        run(assignment, send, orders)

    return witnessed


if __name__ == "__main__":
    serve()
