"""A household of small real processes: who dies is started again, within reason, and nobody is left over."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from app.cli.processes import MAX_ENDS, PAUSES_S, WITHIN_S
from tests.processes import Process, eventually, started

HOUSEHOLD = """
import signal, sys
from app.cli.processes import Household, environment, python

write = lambda name, line, _: print(name, line.decode(), flush=True)
home = Household(write, print, grace_s=10, pauses_s=(0, 0.05, 0.1))
signal.signal(signal.SIGTERM, lambda *_: home.interrupt())
kept = lambda line: {"KEPT": line.rpartition(" ")[2]}
patient = python("-c", "print('ready'); import time; time.sleep(600)")
home.add("patient", patient, environment(), signal.SIGKILL, ready="ready")
home.add("other", python("-c", sys.argv[1]), environment(), signal.SIGKILL, ready="ready", keep=kept)
sys.exit(home.run())
"""
READY = "import os, signal, time; print('ready at', os.environ.get('KEPT', os.getpid()), flush=True)\n"
KILLS_ITSELF = READY + "os.kill(os.getpid(), signal.SIGKILL)"


@contextmanager
def household(root: Path, program: str) -> Iterator[Process]:
    """Run one patient child, and another that does what the program says."""
    (root / "household.py").write_text(HOUSEHOLD)
    with started("household.py", program, root=root) as process:
        yield process


def test_the_pauses_are_those_that_are_promised() -> None:
    assert PAUSES_S == (1.0, 5.0, 30.0)
    assert (MAX_ENDS, WITHIN_S) == (5, 600.0)


def test_who_dies_again_and_again_ends_it_all(tmp_path: Path) -> None:
    with household(tmp_path, KILLS_ITSELF) as process:
        assert process.popen.wait(60) == 1
        said = process.output
        pauses = [line.rpartition(" in ")[2] for line in said.splitlines() if "starting it again" in line]
        assert pauses == ["0 s", "0.05 s", "0.1 s", "0.1 s"]
        assert "other has ended (SIGKILL), 5 times within 10 minutes; stopping the rest" in said


def test_any_exit_is_an_end(tmp_path: Path) -> None:
    for code in (0, 3):
        with household(tmp_path, READY + f"os._exit({code})") as process:
            assert process.popen.wait(60) == 1
            assert f"other has ended (exit code {code}), 5 times" in process.output


def test_who_is_never_ready_ends_it_all_with_its_message(tmp_path: Path) -> None:
    with household(tmp_path, "import sys; sys.exit('no such disk')") as process:
        assert process.popen.wait(60) == 1
        assert "other no such disk\n" in process.output
        assert "other has ended (exit code 1) before it was ready; stopping the rest" in process.output
        assert "starting it again" not in process.output


def test_a_new_start_keeps_what_the_first_has_said(tmp_path: Path) -> None:
    with household(tmp_path, READY + "time.sleep(600 if 'KEPT' in os.environ else 0)") as process:
        process.says("starting it again")
        eventually(lambda: process.output.count("other ready at") == 2, what="the second start")
        first, second = (line for line in process.output.splitlines() if line.startswith("other ready at"))
        assert first == second
        assert process.stop() == 0, process.output


def test_what_a_killed_child_leaves_behind_does_not_stay_a_zombie(tmp_path: Path) -> None:
    """As a runner does: it has a session of its own, and ends with its parent."""
    leaves_one = READY + (
        "import subprocess, sys\n"
        "reads = [sys.executable, '-c', 'import sys; sys.stdin.read()']\n"
        "left = subprocess.Popen(reads, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print('left', left.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with household(tmp_path, leaves_one) as process:
        left = int(process.says("other left").rpartition(" ")[2])
        os.kill(psutil.Process(left).ppid(), signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(left), what="the end of what was left")
        process.says("starting it again")
        assert process.stop() == 0, process.output


def test_half_a_line_at_an_end_is_passed_on(tmp_path: Path) -> None:
    """Whichever of the two pipes has closed first."""
    halves = "os.close(2); os.write(1, b'half a line'); time.sleep(0.3); os._exit(4)"
    with household(tmp_path, "import os, time; " + halves) as process:
        assert process.popen.wait(60) == 1
        assert "other half a line\n" in process.output
        assert "before it was ready" in process.output
