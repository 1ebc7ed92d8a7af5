"""A service of one's own in the background: started, waited for, stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.cli.processes import environment, python, spawn, stop
from app.cli.up import GRACE_S
from app.client import ClientError

_LISTENING = re.compile(r"^listening on (http://\S+)$", re.MULTILINE)
_START_S = 60.0


class ServiceDied(ClientError):
    """The service ended, or never began to listen; the message ends with its last lines."""


@dataclass(frozen=True, slots=True)
class Service:
    """A `saimp up` with roots of its own. log: what it has written."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for_url(self, timeout_s: float = _START_S) -> str:
        """Return where it listens. Raises ServiceDied."""
        deadline = time.monotonic() + timeout_s
        while True:
            is_alive = self.process.poll() is None
            found = _LISTENING.search(self.log.read_text(encoding="utf-8", errors="replace"))
            if found:
                return found[1]
            if not is_alive or time.monotonic() > deadline:
                raise ServiceDied("the service did not start:\n" + self.last_words())
            time.sleep(0.05)

    def last_words(self, lines: int = 12) -> str:
        """The last lines it wrote."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])


@contextmanager
def service(data_root: Path, logs_root: Path) -> Iterator[Service]:
    """Run a service on these roots and a free port, and stop it at the end, whatever happens."""
    logs_root.mkdir(parents=True, exist_ok=True)
    log = logs_root / "service.txt"
    env = environment(
        SAIMP_DATA_ROOT=str(data_root),
        SAIMP_LOGS_ROOT=str(logs_root),
        SAIMP_DATABASE_URL="",  # the user's database is not for us
        SAIMP_TOKEN="",
        SAIMP_HOST="127.0.0.1",
        SAIMP_PORT="0",
    )
    with open(log, "wb") as file:
        command = python("-m", "app.cli.main", "up")
        process = spawn(command, env=env, stdout=file, stderr=file, orphaned=signal.SIGTERM)
    try:
        yield Service(process, log)
    finally:
        stop(process, GRACE_S + 5)
