"""Real processes for tests: started with their own roots, waited for with deadlines, never left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from app.settings import PREFIX

Result = TypeVar("Result")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)  # between fork and exec nothing may be imported


def eventually(probe: Callable[[], Result], *, within_s: float = 60.0, what: str = "it") -> Result:
    """Poll until `probe` gives something true, and return that. Fails past the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        result = probe()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s (last: {result!r})"
        time.sleep(0.02)


def environment(root: Path, **settings: str) -> dict[str, str]:
    """Make an environment whose only SAIMP_* settings are the roots below `root` and those given."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    roots = {"SAIMP_DATA_ROOT": str(root / "data"), "SAIMP_LOGS_ROOT": str(root / "logs")}
    return {**inherited, **roots, "PYTHONPATH": str(Path(__file__).parents[1]), **settings}


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; a zombie that nobody has reaped yet has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, arguments: Sequence[str], root: Path, **settings: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.output_path = root / f"{'-'.join(a for a in arguments if a.isalpha())}.{time.time_ns()}.out"
        with self.output_path.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=root,
                env=environment(root, **settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_this_process,
            )

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def says(self, text: str, *, within_s: float = 60.0) -> str:
        """Wait until the output holds `text`, and return the line."""

        def line() -> str | None:
            assert text in self.output or self.popen.poll() is None, self.output
            return next((line for line in self.output.splitlines() if text in line), None)

        found = eventually(line, within_s=within_s, what=f"{text!r} in the output of {self.popen.args!r}")
        assert found is not None
        return found

    def stop(self, sign: signal.Signals = signal.SIGTERM, *, within_s: float = 30.0) -> int:
        """Signal it and return its exit code."""
        self.popen.send_signal(sign)
        return self.popen.wait(within_s)

    def end(self) -> None:
        """Kill it and everything it started."""
        victims = [psutil.Process(self.popen.pid)] if self.popen.poll() is None else []
        for victim in [*victims, *(child for parent in victims for child in parent.children(recursive=True))]:
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        self.popen.wait(10)


def _die_with_this_process() -> None:
    # Only from the main thread: it is the thread that the kernel takes for the parent.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job is told to ignore it


@contextmanager
def started(*arguments: str, root: Path, **settings: str) -> Iterator[Process]:
    """Run `python *arguments` for the length of the block."""
    process = Process(arguments, root, **settings)
    try:
        yield process
    finally:
        process.end()
