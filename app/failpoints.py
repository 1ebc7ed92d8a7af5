"""Failpoints: named places where a test lets a process die, hang or fail. In service they do nothing.

The environment variable FAILPOINTS names a folder, for this process and all it starts. A file there, named
like a point, arms the point and says what happens when it is reached: one of the actions below, and behind a
space the how-manieth time, counted over all processes. Whoever takes the file away acts; so it happens
once, in a process that may have been running for long, and a file that is gone says that its point is alive.

    kill, exit, segv, stop (SIGSTOP), hang, sleep:SECONDS, error:ENOSPC (or any errno), oom (torch's),
    cuda (a device that has failed), pass
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

VARIABLE = "FAILPOINTS"
EXIT_CODE = 70

# What commits: each has a point before its commit, and one between the commit and whatever follows it.
VERBS = (
    # users
    "submit",
    "cancel",
    "pause",
    "resume",
    "edit",
    "move",
    "delete",
    "promote",
    "drain",
    "open",
    # workers
    "greet",
    "beat",
    "leave",
    "rescue",
    "claim",
    "resume_at",
    "discard_checkpoint",
    "record",
    "prune_checkpoints",
    "finish",
    "release",
    "suspend",
    "crash",
)
# Files that are written whole or not at all.
_CHECKPOINTS = ("best", "resume")
_MOMENTS = ("before_write", "mid_write", "before_fsync", "before_rename", "after_rename")

POINTS = frozenset(
    {
        *(f"{verb}.{moment}" for verb in VERBS for moment in ("before_commit", "after_commit")),
        *(f"{kind}.{moment}" for kind in _CHECKPOINTS for moment in _MOMENTS),
        # runner
        "runner.begin",
        "train.micro_batch",
        "evaluate.batch",
        "sidecar.before_rename",
        "log.before_line",
        "plot.before_rename",
        "report.before_rename",
        # supervisor
        "start.before_fork",
        "start.after_fork",
        "publish.before_link",
        "publish.between_links",
        "publish.after_link",
        "crown.between_links",
        "prune.before_unlink",
    }
)

_folder = os.environ.get(VARIABLE)
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Do what a test has planned for this place; nothing, unless it has."""
    if _folder is not None:
        _reached(Path(_folder), name)


def _reached(folder: Path, name: str) -> None:
    assert name in POINTS, name
    armed = folder / name
    with _lock:
        try:
            action, _, nth = armed.read_text().partition(" ")
        except FileNotFoundError:
            return
        if int(nth or 1) > 1:
            draft = armed.with_suffix(".draft")
            draft.write_text(f"{action} {int(nth) - 1}")
            draft.replace(armed)
            return
        try:
            armed.unlink()
        except FileNotFoundError:
            return  # another process was faster
    _act(name, *action.split(":"))


def _act(name: str, action: str, argument: str = "") -> None:
    match action:
        case "pass":
            pass
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(EXIT_CODE)
        case "hang":
            while True:
                time.sleep(3600)
        case "sleep":
            time.sleep(float(argument))
        case "error":
            number = getattr(errno, argument)
            raise OSError(number, os.strerror(number), name)
        case "oom":
            # Only where torch is there already: the supervisor and the API never load it.
            raise sys.modules["torch"].OutOfMemoryError(f"CUDA out of memory (failpoint {name}).")
        case "cuda":
            raise sys.modules["torch"].AcceleratorError(f"CUDA error: unspecified launch failure ({name})")
        case _:
            raise AssertionError(f"{name}: unknown action {action!r}")
