"""The service as the rig sees it: an API and a worker, forked warm, killed and started again."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.jobs.queue import Queue
from tests.failpoints import Failpoints
from tests.processes import environment

Role = Literal["api", "worker"]
ROLES: tuple[Role, ...] = ("api", "worker")
ANSWER_S = 60.0


class Zygote:
    """The warm process of `tests.rig.zygote`, started once for many houses."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(folder),
            cwd=folder,
        )
        self._codes: dict[int, int] = {}

    def start(self, command: Mapping[str, Any]) -> int:
        """Fork a process and return its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            if (pid := self._hear()) is not None:
                return pid

    def wait(self, pid: int) -> int:
        """Wait for the end of a process and return its exit code."""
        while pid not in self._codes:
            self._hear()
        return self._codes[pid]

    def close(self) -> None:
        """End it, with all it has forked."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _hear(self) -> int | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the zygote has ended: {self._process.poll()}"
        news = json.loads(line)
        if "pid" in news:
            return int(news["pid"])
        self._codes[news["ended"]] = news["code"]
        return None


@contextmanager
def zygote(folder: Path) -> Iterator[Zygote]:
    """Have a zygote for the length of the block."""
    made = Zygote(folder)
    try:
        yield made
    finally:
        made.close()


@dataclass
class House:
    """One data root and the processes that serve it. Whoever waits for it starts again what was killed."""

    root: Path
    zygote: Zygote
    queue: Queue
    pids: dict[Role, int] = field(default_factory=dict)
    clock_ahead_s: float = 0.0
    starts: int = 0
    port: int = 0
    _seen: set[int] = field(default_factory=set)
    _said: dict[Role, int] = field(default_factory=dict)  # bytes of output before the last start

    def __post_init__(self) -> None:
        self.points = Failpoints(self.root / "failpoints")
        self.witness = self.root / "witness"
        self.witness.mkdir(exist_ok=True)

    # ---- processes ----

    def start(self, role: Role) -> None:
        """Start a process; the API may take a moment to answer."""
        self.starts += 1
        self._said[role] = self.output(role).stat().st_size if self.output(role).exists() else 0
        self.pids[role] = self.zygote.start(
            {
                "role": role,
                "output": str(self.output(role)),
                "failpoints": str(self.points.folder),
                "witness": str(self.witness),
                "clock_ahead_s": self.clock_ahead_s,
                "settings": {
                    "SAIMP_DATA_ROOT": str(self.root / "data"),
                    "SAIMP_LOGS_ROOT": str(self.root / "logs"),
                    "SAIMP_DATABASE_URL": self.queue.database.write_engine.url.render_as_string(
                        hide_password=False
                    ),
                    "SAIMP_PORT": str(self.port),
                    "SAIMP_AUTH": "off",
                },
            }
        )
        self._seen.add(self.pids[role])

    def tend(self) -> None:
        """Start again whatever has ended."""
        for role in self.pids:
            if not is_alive(self.pids[role]):
                self.start(role)
        self._seen.update(self.tree())

    def kill(self, pid: int | None, number: signal.Signals = signal.SIGKILL) -> bool:
        """Signal a process of the house; return whether there was one."""
        if pid is None or not is_alive(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    @property
    def runner(self) -> int | None:
        """The process that trains just now."""
        for server in children(self.pids.get("worker", 0)):
            for runner in children(server):
                return runner
        return None

    def tree(self) -> list[int]:
        """Every live process of the house."""
        found = [pid for pid in self.pids.values() if is_alive(pid)]
        for pid in found:
            found.extend(children(pid))
        return found

    def is_ready(self) -> bool:
        """Whether the worker has said so since its last start."""
        return b"worker ready" in self.output("worker").read_bytes()[self._said["worker"] :]

    def stop(self, role: Role) -> int:
        """Stop a process gracefully and return its exit code."""
        pid = self.pids.pop(role)
        self.kill(pid, signal.SIGCONT)
        self.kill(pid, signal.SIGTERM)
        return self.zygote.wait(pid)

    def close(self) -> None:
        """Kill whatever is left."""
        for pid in self.tree():
            self.kill(pid)

    def left_over(self, within_s: float = 5.0) -> list[int]:
        """Which of all processes there ever were have not gone, though they have had the time to."""
        deadline = time.monotonic() + within_s
        while (left := [pid for pid in self._seen if is_alive(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def output(self, role: Role) -> Path:
        return self.root / f"{role}.out"

    def is_armed(self, *verbs: str) -> bool:
        """Whether a failpoint of one of these verbs has still to be reached."""
        return any(
            self.points.is_armed(f"{verb}.{moment}_commit")
            for verb in verbs
            for moment in ("before", "after")
        )

    # ---- waiting ----

    def until(self, probe: Callable[[], Any], what: str, *, within_s: float = 240.0) -> Any:
        """Tend the house until `probe` gives something true; fail past the deadline, with what was said."""
        deadline = time.monotonic() + within_s
        while not (result := probe()):
            if time.monotonic() > deadline:
                said = self.output("worker").read_text(errors="replace")[-3000:]
                raise AssertionError(f"{what} did not happen within {within_s} s\n{said}")
            self.tend()
            time.sleep(0.01)
        return result

    # ---- HTTP ----

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
        """Send a request until it is answered, across any number of deaths: (status, body)."""
        deadline = time.monotonic() + ANSWER_S
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        while True:
            self.tend()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=ANSWER_S)
                with_body = None if body is None else json.dumps(body)
                connection.request(method, path, with_body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if answer.status < 500:
                    return answer.status, json.loads(content) if content else None
                why: object = content
            except (OSError, http.client.HTTPException) as error:
                why = error
            if time.monotonic() > deadline:
                raise AssertionError(f"{method} {path}: {why!r}\n{self.output('api').read_text()[-3000:]}")
            time.sleep(0.01)

    def _port(self) -> int:
        """The port stays the same over all lives of the API."""
        if not self.port:
            said = self.output("api").read_text() if self.output("api").exists() else ""
            found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", said)
            if found is None:
                raise ConnectionRefusedError("the API does not listen yet")
            self.port = int(found[1])
        return self.port


def is_alive(pid: int) -> bool:
    """Whether a process is there; one that has ended and is not yet reaped is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    """The live children of a process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found = [int(child) for child in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [child for child in found if is_alive(child)]
