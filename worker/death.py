"""What ended a runner that did not end by itself."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

from app.jobs.queue import Reason

_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"})
_LOG = "The end of the job's log says more."


def oom_kills(cgroup: Path = Path("/sys/fs/cgroup/memory.events"), host: Path = Path("/proc/vmstat")) -> int:
    """Count the processes the kernel has killed for want of memory: in this container, else on this host."""
    for path in (cgroup, host):
        with suppress(OSError, ValueError):
            counts = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    return 0


def cause_of_death(exit_code: int | None, *, oom_kills_seen: int = 0) -> Reason:
    """Name what ended it. oom_kills_seen: how many kills for memory there were while it lived."""
    if exit_code is None or exit_code >= 0:
        return Reason(
            "internal", f"The training process ended with exit code {exit_code} and without a word.", _LOG
        )
    known = -exit_code in set(signal.Signals)
    name = signal.Signals(-exit_code).name if known else f"signal {-exit_code}"
    if name == "SIGKILL" and oom_kills_seen:
        return Reason(
            "host_out_of_memory",
            "The kernel killed the training process: the machine ran out of memory.",
            "Lower SAIMP_STREAM_BUDGET or training.batch_size, or close other programs.",
        )
    if name in _CRASHES:
        return Reason("native_crash", f"The training process crashed with {name}.", _LOG)
    return Reason("internal", f"The training process was killed by {name}.", _LOG)
