"""How long a killed job stands still: from SIGKILL to its `resumed` event, on one host.

    python -m bench.recovery --kills 20

The runner is killed, then the worker (its supervisor; the runner goes with it). A new worker is forked
at once from a process that has imported torch, so that the import is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.rig.house import House
from tests.rig.life import open_house, submit

LONG = {"training": {"epochs": 10_000, "threads": 1}, "early_stopping": {"patience": None}}
FIRST_SIGHT_S = 0.001


def measure(kills: int) -> dict[str, dict[str, float]]:
    """Kill so often of each; return seconds."""
    with tempfile.TemporaryDirectory(prefix="saimp-recovery-") as folder:
        root = Path(folder)
        (root / "data").mkdir()
        with open_house(root) as house:
            job_id = submit(house, "long", **LONG, max_attempts=min(100, 10 * kills))
            victims: dict[str, Callable[[], int | None]] = {
                "runner": lambda: house.runner,
                "worker": lambda: house.pids["worker"],
            }
            return {name: _kill(house, job_id, victim, kills) for name, victim in victims.items()}


def _kill(house: House, job_id: str, victim: Callable[[], int | None], kills: int) -> dict[str, float]:
    took_s = []
    for _ in range(kills):
        house.until(lambda: _is_further(house, job_id), "a checkpoint of this attempt")
        resumed = _resumes(house, job_id)
        killed = house.kill(victim())
        began = time.monotonic()
        assert killed
        while _resumes(house, job_id) == resumed:
            house.tend()
            time.sleep(FIRST_SIGHT_S)
        took_s.append(time.monotonic() - began)
    return {
        "kills": kills,
        "median_s": round(statistics.median(took_s), 3),
        "worst_s": round(max(took_s), 3),
    }


def _resumes(house: House, job_id: str) -> int:
    return sum(event.kind == "resumed" for event in house.queue.events(job_id))


def _is_further(house: House, job_id: str) -> bool:
    """Whether the attempt trains and has got on: a job that dies where it began is backed off from."""
    newest = house.queue.checkpoints(job_id)
    return bool(newest) and newest[0].attempt == house.queue.get(job_id).attempt and house.runner is not None


def main() -> int:
    """Read the options, kill, print seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    with suppress(KeyboardInterrupt):
        print(json.dumps(measure(parser.parse_args().kills)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
