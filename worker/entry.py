"""A runner's first acts, before torch: a process group of its own, and an end when its supervisor ends.

Imported by the supervisor (to name `enter`) and by the fork server's children: nothing heavy here.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from worker.assignment import Assignment, Order

PR_SET_PDEATHSIG = 1
ORPHANED = 76  # exit code: the supervisor is gone


class Orders:
    """What the supervisor asked for; read between events. The newest order stands."""

    def __init__(self, connection: Connection) -> None:
        self.stop: Order | None = None
        self._connection = connection

    def listen(self) -> None:
        """Take orders until the supervisor's end of the pipe closes, then leave at once."""
        while True:
            try:
                order = self._connection.recv_bytes().decode()
            except (EOFError, OSError):
                os._exit(ORPHANED)
            self.stop = order  # type: ignore[assignment]


def enter(assignment: Assignment, connection: Connection, server_pid: int) -> None:
    """Become the runner of one attempt. Runs in a child of the fork server.

    server_pid: the fork server's, to see whether it lived long enough for PDEATHSIG to be armed.
    """
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _let_the_fork_server_die()
    if os.getppid() != server_pid:
        os._exit(ORPHANED)
    with suppress(OSError):  # the kernel's first choice when the host runs out of memory
        Path("/proc/self/oom_score_adj").write_text("800")
    _write_to(assignment.log)
    orders = Orders(connection)
    threading.Thread(target=orders.listen, name="orders", daemon=True).start()
    # Already imported by the fork server; here so that the supervisor never imports torch.
    from worker.runner import run  # noqa: PLC0415

    run(assignment, connection.send_bytes, orders)


def _let_the_fork_server_die() -> None:
    # Python hands each child the write end of the pipe that keeps the fork server alive: with it open, the
    # server would outlive a killed supervisor as long as we do, and PDEATHSIG would never come.
    alive_fd = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    if alive_fd is not None:
        os.close(alive_fd)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


def _write_to(log: os.PathLike[str]) -> None:
    """Send everything this process writes, native crashes included, to the end of the log."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor asks, when we stall
