"""Failpoints: each action once, in whichever process comes first; nothing in service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app import failpoints
from tests.failpoints import Failpoints
from tests.processes import environment

POINT = "claim.before_commit"
REACH = f"from app.failpoints import failpoint; failpoint({POINT!r}); print('alive')"


@pytest.fixture
def points(tmp_path: Path) -> Failpoints:
    return Failpoints(tmp_path / "failpoints")


def reach(points: Failpoints, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{before}\n{REACH}"],
        env={**environment(points.folder.parent), **points.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("segv", -signal.SIGSEGV), ("exit", 70), ("pass", 0)]
)
def test_an_action_comes_to_pass_once(points: Failpoints, action: str, code: int) -> None:
    points.arm(POINT, action)
    assert reach(points).returncode == code
    assert not points.is_armed(POINT)
    assert reach(points).stdout == "alive\n"


def test_the_nth_time_counts_over_all_processes(points: Failpoints) -> None:
    points.arm(POINT, "kill", nth=3)
    assert [reach(points).returncode for _ in range(4)] == [0, 0, -signal.SIGKILL, 0]


def test_an_error_is_the_operating_systems(points: Failpoints) -> None:
    points.arm(POINT, "error:ENOSPC")
    assert f"OSError: [Errno 28] No space left on device: '{POINT}'" in reach(points).stderr


def test_out_of_memory_is_torchs_own(points: Failpoints) -> None:
    points.arm(POINT, "oom")
    assert "torch.OutOfMemoryError: CUDA out of memory" in reach(points, "import torch").stderr


def test_a_stopped_process_goes_on_when_it_is_told_to(points: Failpoints) -> None:
    points.arm(POINT, "stop")
    process = subprocess.Popen(
        [sys.executable, "-c", REACH],
        env={**environment(points.folder.parent), **points.environment},
        stdout=subprocess.PIPE,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == b"alive\n"


def test_in_service_nothing_is_looked_at(points: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    points.arm(POINT, "exit")
    monkeypatch.setattr(failpoints, "_folder", None)
    failpoints.failpoint(POINT)
    assert points.disarm(POINT)


def test_a_point_nobody_has_listed_is_refused(points: Failpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_folder", str(points.folder))
    with pytest.raises(AssertionError, match="nowhere"):
        failpoints.failpoint("nowhere")
