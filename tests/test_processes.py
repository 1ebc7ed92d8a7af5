"""What a test run that is killed leaves behind: nothing."""

from __future__ import annotations

from pathlib import Path

from tests.processes import Process, eventually, is_gone

RUN = """
import sys, time
from pathlib import Path
from tests.processes import Process
print(Process(["-c", "import time; time.sleep(600)"], Path(sys.argv[1])).popen.pid, flush=True)
time.sleep(600)
"""


def test_processes_end_with_the_test_run_that_started_them(tmp_path: Path) -> None:
    run = Process(["-c", RUN, str(tmp_path / "inner")], tmp_path)
    pid = int(eventually(lambda: run.output.strip(), what="the inner process"))
    assert not is_gone(pid)
    run.popen.kill()
    run.popen.wait()
    eventually(lambda: is_gone(pid), within_s=10, what="the end of the inner process")
