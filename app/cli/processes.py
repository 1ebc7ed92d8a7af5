"""Child processes that live and end together with this one."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.2
_GROUP_S = 1.0
# Loaded here: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

Write = Callable[[str, bytes, bool], None]

# More often than this, a child that is killed is not started again.
_MAX_RESTARTS, _RESTARTS_WITHIN_S = 5, 300.0


@dataclass
class Child:
    """A process in a group of its own. Its lines are passed on whole."""

    name: str
    process: subprocess.Popen[bytes]
    start_again: Callable[[], None] | None = None
    pending: dict[int, bytes] = field(default_factory=dict)


def python(*arguments: str) -> list[str]:
    """A command of this Python. -P: a folder named app or worker where the user stands is not ours."""
    return [sys.executable, "-P", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child. From a source tree that is not installed, it finds the code too."""
    tree = Path(__file__).resolve().parents[2]
    found = {**os.environ, **changes}
    if (tree / "pyproject.toml").exists():
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    return found


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    orphaned: signal.Signals,
) -> subprocess.Popen[bytes]:
    """Start a process in its own group that gets `orphaned` when this one dies, even by SIGKILL.

    Call it from the main thread: the kernel sends the signal when the thread that forked ends.
    """
    parent = os.getpid()

    def bind_to_parent() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(orphaned), 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    return subprocess.Popen(
        command,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=bind_to_parent,
    )


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End a process politely; after the grace, its whole group by force."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group by force."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Household:
    """Children that run until a signal stops them all, or one of them ends and takes the others along."""

    def __init__(self, write: Write, say: Callable[[str], None], *, grace_s: float) -> None:
        self._write = write
        self._say = say
        self._grace_s = grace_s
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._signals = 0
        self._restarts: list[float] = []

    def add(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        orphaned: signal.Signals,
        *,
        is_restarted: bool = False,
    ) -> None:
        """Start a child whose output is passed on. is_restarted: again, when a signal has killed it."""

        def start() -> None:
            self.add(name, command, env, orphaned, is_restarted=True)

        pipe = subprocess.PIPE
        process = spawn(command, env=env, stdout=pipe, stderr=pipe, orphaned=orphaned)
        child = Child(name, process, start if is_restarted else None)
        self._children.append(child)
        for stream in (child.process.stdout, child.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, child)

    def interrupt(self) -> None:
        """Ask for the end; the second time, force it. For signal handlers."""
        self._signals += 1

    def run(self) -> int:
        """Pass output on until all have ended. 0 after a signal, else the code of the child that ended."""
        _adopt_orphans()
        while not self._signals:
            self._forward(_LOOK_EVERY_S)
            for child in self._children:
                if child.process.poll() is not None:
                    code = child.process.returncode
                    if code < 0 and self._start_again(child):
                        break
                    self._say(f"{child.name} has ended ({_ending(code)}); stopping the rest")
                    self._stop()
                    return code if code > 0 else 128 - code if code < 0 else 1
        self._say("stopping")
        return 0 if self._stop() else 1

    def _start_again(self, child: Child) -> bool:
        """Replace a child that was killed, unless it is killed all the time; return whether it was."""
        recent = [at for at in self._restarts if time.monotonic() - at < _RESTARTS_WITHIN_S]
        if child.start_again is None or len(recent) >= _MAX_RESTARTS:
            return False
        self._restarts = [*recent, time.monotonic()]
        self._say(f"{child.name} was killed ({_ending(child.process.returncode)}); starting it again")
        _clear_group(child.process.pid)
        self._forward(0.0)
        self._flush(child)
        self._children.remove(child)
        child.start_again()
        return True

    def _stop(self) -> bool:
        """End all children; False when one had to be killed."""
        asked = self._signals
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = time.monotonic() + self._grace_s
        was_polite = True
        while any(child.process.poll() is None for child in self._children):
            self._forward(_LOOK_EVERY_S)
            if time.monotonic() > deadline or self._signals > asked + 1:
                for child in self._children:
                    if child.process.poll() is None:
                        self._say(f"{child.name} does not stop; killing it")
                        kill(child.process)
                        was_polite = False
        for child in self._children:
            _clear_group(child.process.pid)
        self._forward(0.0)
        for child in self._children:
            self._flush(child)
        return was_polite

    def _forward(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            child: Child = key.data
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self._selector.unregister(key.fileobj)
                continue
            *lines, child.pending[key.fd] = (child.pending.get(key.fd, b"") + chunk).split(b"\n")
            for line in lines:
                self._pass_on(child, line, key.fd)

    def _flush(self, child: Child) -> None:
        for fd, rest in child.pending.items():
            if rest:
                self._pass_on(child, rest, fd)

    def _pass_on(self, child: Child, line: bytes, fd: int) -> None:
        assert child.process.stderr is not None
        self._write(child.name, line, fd == child.process.stderr.fileno())


def _adopt_orphans() -> None:
    """Become the parent of what a child leaves behind, so that its end can be waited for."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _clear_group(leader: int) -> None:
    """Wait for what a leader that has ended left in its group; past the time for that, end it by force."""
    deadline = time.monotonic() + _GROUP_S
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-leader, os.WNOHANG) == (0, 0):
                time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
        while True:
            os.waitpid(-leader, 0)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
