"""Starting runners: forked from a warm server process that has only imported torch."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

import psutil

from worker.assignment import Assignment, Order
from worker.engine import events
from worker.entry import enter

# The fork server must stay single-threaded and must not touch the driver: a runner inherits neither.
SERVER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic cuBLAS; read when CUDA starts
    "MPLBACKEND": "agg",
}


DUMP_S = 1.0
# The longest a fork server may take to start a runner: it may still be importing, from a slow disk.
START_S = 120.0
# One that is stopped (SIGSTOP, a debugger that went away) is not waited for, nor one that does not report
# within this time that a runner has ended.
STOPPED_S = 2.0


class Runner:
    """A live attempt: its process, the events it sent, the orders it takes."""

    def __init__(
        self,
        process: ForkServerProcess,
        connection: Connection,
        end_server: Callable[[], None] = lambda: None,
    ) -> None:
        """end_server: by force; with it goes whoever was to report the end of this process."""
        self.process = process
        self._end_server = end_server
        self._unreported_since: float | None = None
        self.inbox: queue.SimpleQueue[events.Event] = queue.SimpleQueue()
        self._connection = connection
        # A thread drains the pipe, so that a slow database never blocks training.
        self._reader = threading.Thread(target=self._read, name="events", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its end is not known yet. A fork server that keeps it to itself is ended: that tells."""
        if self.process.exitcode is not None:
            return False
        if self.is_drained and _is_dead(self.pid):
            now = time.monotonic()
            self._unreported_since = self._unreported_since or now
            if now - self._unreported_since > STOPPED_S:
                self._end_server()
        return True

    @property
    def exit_code(self) -> int | None:
        """Null while it lives, negative for the signal that killed it."""
        return self.process.exitcode

    @property
    def is_drained(self) -> bool:
        """Whether everything it ever sent is in the inbox; false while its pipe may hold more."""
        return not self._reader.is_alive()

    def order(self, order: Order) -> None:
        """Ask it to stop; a runner that is gone takes no orders."""
        with suppress(OSError):
            self._connection.send_bytes(order.encode())

    def kill(self) -> None:
        """End it and whatever it started, at once. Once it has ended, its pid may be another's."""
        if not self.is_alive:
            return
        for target in (-self.pid, self.pid):  # a runner younger than its setsid leads no group yet
            with suppress(ProcessLookupError, PermissionError):
                os.kill(target, signal.SIGKILL)

    def dump_stacks(self) -> None:
        """Make it write the stacks of its threads to its log, and give it a moment to do so."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
        wait([self.process.sentinel], DUMP_S)

    def close(self) -> None:
        """Let go of a runner that has ended, or is about to."""
        while self.is_alive:
            wait([self.process.sentinel], 0.1)
        self._reader.join()
        self._connection.close()
        self.process.close()

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.inbox.put(events.decode(self._connection.recv_bytes()))


class Spawner:
    """The fork server, started once; it imports torch while the queue is still empty."""

    def __init__(self) -> None:
        os.environ.update({key: os.environ.get(key, value) for key, value in SERVER_ENVIRONMENT.items()})
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["worker.warm"])

    def warm_up(self) -> None:
        """Start the fork server, without waiting for its imports."""
        forkserver.ensure_running()

    @property
    def server_pid(self) -> int:
        pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        return pid

    def start(self, assignment: Assignment) -> Runner:
        """Fork a runner, from a new server if the one there is does not answer, or dies of it.

        Call from the main thread: PDEATHSIG is about threads.
        """
        try:
            return self._start(assignment)
        except (EOFError, ConnectionError):
            print("the fork server does not answer; starting a new one", flush=True)
            return self._start(assignment)

    def close(self) -> None:
        """End the server: by itself it would first finish its imports, and a stopped one would stay."""
        self._end_server(self.server_pid)

    def _start(self, assignment: Assignment) -> Runner:
        self.warm_up()
        server_pid = self.server_pid
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=enter, args=(assignment, theirs, server_pid), name=f"runner-{assignment.job_id}"
        )
        try:
            with _answering(server_pid, partial(self._end_server, server_pid)):
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # else the pipe would not end with the runner
        return Runner(process, ours, partial(self._end_server, server_pid))

    def _end_server(self, pid: int) -> None:
        if pid == self.server_pid:  # not yet waited for, so it is nobody else's
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _answering(server_pid: int, end_server: Callable[[], None]) -> Iterator[None]:
    """End a server that does not answer within the block, so that nobody waits for it for ever."""
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(server_pid, end_server, done), name="start", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _watch(server_pid: int, end_server: Callable[[], None], done: threading.Event) -> None:
    began = running = time.monotonic()
    while not done.wait(0.2):
        now = time.monotonic()
        if not _is_stopped(server_pid):
            running = now
        if now - running > STOPPED_S or now - began > START_S:
            end_server()
            return


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _is_dead(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    return True
