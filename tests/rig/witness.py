"""A witness of what must not be: two runners that work on one job at the same time.

Each runner holds a lock on its job for as long as it lives; the kernel lets go of it, and nobody else.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_VIOLATIONS = "violations"
_SIGKILL = 1 << 8


def bear_witness(folder: Path, job_id: str, attempt: int) -> None:
    """Hold the lock of a job until this process ends; note it when another runner holds it still."""
    lock = os.open(folder / job_id, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode()
        if not _is_doomed(int(holder or 0)):
            with (folder / _VIOLATIONS).open("a") as file:
                file.write(f"{job_id}: attempt {attempt} began while process {holder} lived\n")
        fcntl.flock(lock, fcntl.LOCK_EX)
    os.pwrite(lock, f"{os.getpid():<32}".encode(), 0)


def violations(folder: Path) -> str:
    """Say what was seen."""
    path = folder / _VIOLATIONS
    return path.read_text() if path.exists() else ""


def _is_doomed(pid: int) -> bool:
    """Whether a process has been killed, and is only waiting for a core to die on: it acts no more."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return bool(pending & _SIGKILL) or status["State"].split()[0] in "ZX"
