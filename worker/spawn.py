"""Starting runners: forked from a warm server process that has only imported torch."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

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


class Runner:
    """A live attempt: its process, the events it sent, the orders it takes."""

    def __init__(self, process: ForkServerProcess, connection: Connection) -> None:
        self.process = process
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
        return self.process.exitcode is None

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
        """Let go of a runner that has ended."""
        self.process.join()
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
        """Fork a runner. Call from the main thread: PDEATHSIG is about threads."""
        self.warm_up()
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(
            target=enter, args=(assignment, theirs, self.server_pid), name=f"runner-{assignment.job_id}"
        )
        process.start()
        theirs.close()  # else the pipe would not end with the runner
        return Runner(process, ours)
