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
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.2
_GROUP_S = 1.0
# Loaded here: between fork and exec nothing may be imported.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

Write = Callable[[str, bytes, bool], None]

# How long to wait before a child that died is started again: the first time, the second, any later one.
PAUSES_S = (1.0, 5.0, 30.0)
# So many ends within so long are no accident.
MAX_ENDS, WITHIN_S = 5, 600.0


@dataclass
class Child:
    """A process in a group of its own, and how to start it again. Its lines are passed on whole."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    orphaned: signal.Signals
    ready: str
    keep: Callable[[str], Mapping[str, str]]
    process: subprocess.Popen[bytes] | None = None  # null between an end and the next start
    error_fd: int = -1
    is_ready: bool = False
    again_at: float = 0.0
    ends: list[float] = field(default_factory=list)
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
    """Children that run until a signal stops them all. One that dies is started again, within reason.

    pauses_s: before the first new start of a child, the second, and any later one.
    """

    def __init__(
        self,
        write: Write,
        say: Callable[[str], None],
        *,
        grace_s: float,
        pauses_s: tuple[float, ...] = PAUSES_S,
    ) -> None:
        self._write = write
        self._say = say
        self._grace_s = grace_s
        self._pauses_s = pauses_s
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._signals = 0

    def add(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        orphaned: signal.Signals,
        *,
        ready: str,
        keep: Callable[[str], Mapping[str, str]] = lambda _line: {},
    ) -> None:
        """Start a child whose output is passed on.

        ready: how the line begins by which it says that it is. keep: what of that line its next start is
        given, as environment.
        """
        child = Child(name, command, env, orphaned, ready, keep)
        self._children.append(child)
        self._start(child)

    def interrupt(self) -> None:
        """Ask for the end; the second time, force it. For signal handlers."""
        self._signals += 1

    def run(self) -> int:
        """Pass output on until a signal ends it all: 0. A child that cannot be kept alive does, too: 1."""
        _adopt_orphans()
        while not self._signals:
            self._forward(_LOOK_EVERY_S)
            self._reap()
            for child in self._children:
                if child.process is None:
                    if time.monotonic() >= child.again_at:
                        self._start(child)
                elif child.process.poll() is not None and not self._will_start_again(child):
                    self._stop()
                    return 1
        self._say("stopping")
        return 0 if self._stop() else 1

    def _start(self, child: Child) -> None:
        pipe = subprocess.PIPE
        child.process = spawn(child.command, env=child.env, stdout=pipe, stderr=pipe, orphaned=child.orphaned)
        child.is_ready = False
        assert child.process.stderr is not None
        child.error_fd = child.process.stderr.fileno()
        for stream in (child.process.stdout, child.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, child)

    def _will_start_again(self, child: Child) -> bool:
        """Take leave of a child that has ended; return whether it gets another start, and say so."""
        assert child.process is not None
        _clear_group(child.process.pid)
        self._drain(child)  # it may have said that it was ready, and it has said why it ended
        now = time.monotonic()
        child.ends = [*(at for at in child.ends if now - at < WITHIN_S), now]
        ended = f"{child.name} has ended ({_ending(child.process.returncode)})"
        if not child.is_ready:
            self._say(f"{ended} before it was ready; stopping the rest")
            return False
        if len(child.ends) >= MAX_ENDS:
            self._say(f"{ended}, {len(child.ends)} times within {WITHIN_S / 60:g} minutes; stopping the rest")
            return False
        pause_s = self._pauses_s[min(len(child.ends), len(self._pauses_s)) - 1]
        self._say(f"{ended}; starting it again in {pause_s:g} s")
        child.process, child.again_at = None, now + pause_s
        return True

    def _reap(self) -> None:
        """Let those go that a child has left to this process and that have ended: a dead worker's runner."""
        if _libc is None:  # then nobody is left to it, either
            return
        own = {child.process.pid for child in self._children if child.process is not None}
        with suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in own:  # whose end is somebody else's to judge, right away
                    return
                os.waitpid(ended.si_pid, 0)

    def _stop(self) -> bool:
        """End all children; False when one had to be killed."""
        asked = self._signals
        running = [(child, child.process) for child in self._children if child.process is not None]
        for _, process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._grace_s
        was_polite = True
        while any(process.poll() is None for _, process in running):
            self._forward(_LOOK_EVERY_S)
            if time.monotonic() > deadline or self._signals > asked + 1:
                for child, process in running:
                    if process.poll() is None:
                        self._say(f"{child.name} does not stop; killing it")
                        kill(process)
                        was_polite = False
        for child, process in running:
            _clear_group(process.pid)
            self._drain(child)
        self._reap()
        return was_polite

    def _forward(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            self._read(key.data, key.fileobj)

    def _drain(self, child: Child) -> None:
        """Pass on all that a child that has ended has left to say."""
        assert child.process is not None
        for stream in (child.process.stdout, child.process.stderr):
            assert stream is not None
            with suppress(BlockingIOError):  # somebody else holds the other end: what came is all there is
                while not stream.closed and self._read(child, stream):
                    pass
            if not stream.closed:
                self._let_go(child, stream)

    def _read(self, child: Child, stream: Any) -> bool:
        """Pass on what there is; False at its end."""
        fd = stream.fileno()
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            self._let_go(child, stream)
            return False
        *lines, child.pending[fd] = (child.pending.get(fd, b"") + chunk).split(b"\n")
        for line in lines:
            self._pass_on(child, line, fd)
        return True

    def _let_go(self, child: Child, stream: Any) -> None:
        if rest := child.pending.pop(stream.fileno(), b""):
            self._pass_on(child, rest, stream.fileno())
        self._selector.unregister(stream)
        stream.close()

    def _pass_on(self, child: Child, line: bytes, fd: int) -> None:
        self._write(child.name, line, fd == child.error_fd)
        text = line.decode("utf-8", "replace")
        if text.startswith(child.ready) and not child.is_ready:
            child.is_ready = True
            child.env = {**child.env, **child.keep(text)}


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
