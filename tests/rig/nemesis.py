"""Random kills over API, supervisor and runner while real jobs train: every bit as if nothing had happened.

    python -m tests.rig.nemesis --kills 100 --seed 7 [--url postgres]

A schedule drawn from the seed kills, stops and continues processes, ends the worker gracefully, arms
failpoints, fills the disk, turns the worker's clock; users submit, pause, resume and cancel over HTTP, and
what was acknowledged is kept in a journal. In the end, with nothing disturbed any more, all must come to its
end: nothing acknowledged is lost, nothing ran twice at once, ends are final, and each job that succeeded has
the final weights, the best and the numeric columns of a run that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.failpoints import POINTS
from app.jobs.states import FINAL, Status
from tests.postgres.server import fresh_database
from tests.rig.house import House, Role
from tests.rig.life import assert_settled, ended, open_house, submit
from tests.rig.oracle import Numbers, assert_same, numbers

MAX_LIVE = 3
HOUR_S = 3600.0
# A full disk is met where files are written; anything else there would end the job, as it should.
WRITES = (
    *(f"resume.{moment}" for moment in ("before_write", "mid_write", "before_fsync")),
    *(f"best.{moment}" for moment in ("before_write", "mid_write", "before_fsync")),
)


class Nemesis:
    """What happens to one house."""

    def __init__(self, house: House, seed: int) -> None:
        self.house = house
        self.kills = 0
        self.faults: Counter[str] = Counter()
        self.submitted: set[str] = set()
        self.cancelled: dict[str, int] = {}  # job -> the answer's status
        self.ends: dict[str, str] = {}
        self._seed = seed
        self._draw = random.Random(seed)
        self._stopped: list[int] = []
        self._faults: list[tuple[int, Callable[[], None]]] = [
            (24, self.kill_runner),
            (16, self.kill_worker),
            (8, self.kill_api),
            (6, self.kill_all),
            (3, self.kill_all_and_turn_the_clock),
            (4, self.stop_runner),
            (4, self.stop_worker),
            (4, self.kill_worker_over_a_stopped_runner),
            (4, self.end_worker),
            (12, self.arm),
            (3, self.fill_disk),
            (3, self.fill_disk_and_kill_runner),
        ]

    def run(self, kills: int) -> None:
        """Kill so many times, then hold everything to account."""
        house = self.house
        whole = numbers(house.queue, ended(house, submit(house, "whole")).id)
        while self.kills < kills:
            self._ask()
            if self._draw.random() < 0.9:
                house.until(lambda: house.runner or self._rests(), "a runner")
            time.sleep(self._draw.uniform(0.0, 0.3))
            weights, faults = zip(*self._faults, strict=True)
            fault = self._draw.choices(faults, weights)[0]
            self.faults[fault.__name__] += 1
            fault()
            house.tend()
            self._note_ends()
        self._settle(whole)

    # ---- faults ----

    def kill_runner(self) -> None:
        self._kill(self.house.runner)

    def kill_worker(self) -> None:
        self._kill(self.house.pids["worker"])

    def kill_api(self) -> None:
        self._kill(self.house.pids["api"])

    def kill_all(self) -> None:
        for pid in (self.house.runner, self.house.pids["worker"], self.house.pids["api"]):
            self._kill(pid)

    def kill_all_and_turn_the_clock(self) -> None:
        self.house.clock_ahead_s = self._draw.choice([-HOUR_S, 0.0, HOUR_S])
        self.kill_all()

    def stop_runner(self) -> None:
        self._stop(self.house.runner)

    def stop_worker(self) -> None:
        self._stop(self.house.pids["worker"])

    def kill_worker_over_a_stopped_runner(self) -> None:
        runner = self.house.runner
        self.house.kill(runner, signal.SIGSTOP)
        self.kill_worker()
        self.house.tend()
        time.sleep(self._draw.uniform(0.0, 0.3))
        self.house.kill(runner, signal.SIGCONT)

    def end_worker(self) -> None:
        self.house.kill(self.house.pids["worker"], signal.SIGTERM)

    def arm(self) -> None:
        """Aim at a place instead of a time; it may be met much later."""
        name = self._draw.choice(sorted(POINTS - self.house.points.armed()))
        self.house.points.arm(name, "kill", self._draw.randint(1, 3))

    def fill_disk(self) -> None:
        self.house.points.arm(self._draw.choice(WRITES), "error:ENOSPC")

    def fill_disk_and_kill_runner(self) -> None:
        self.fill_disk()
        time.sleep(self._draw.uniform(0.0, 0.2))
        self.kill_runner()

    def _kill(self, pid: int | None) -> None:
        self.kills += self.house.kill(pid)

    def _stop(self, pid: int | None) -> None:
        if self.house.kill(pid, signal.SIGSTOP):
            time.sleep(self._draw.uniform(0.0, 0.5))
            self.house.kill(pid, signal.SIGCONT)

    # ---- users ----

    def _ask(self) -> None:
        """Keep some jobs going; now and then pause, resume or cancel one."""
        house, draw = self.house, self._draw
        live = [row for row in house.queue.page(limit=200)[0] if row.status not in FINAL]
        while len(live) < MAX_LIVE:
            job_id = submit(house, f"{self._seed}-{len(self.submitted)}")
            self.submitted.add(job_id)
            live.append(house.queue.get(job_id))
        row = draw.choice(live)
        verb = draw.choices(["nothing", "pause", "resume", "cancel"], [80, 10, 8, 2])[0]
        if row.status == Status.PAUSED and row.reason_code == "user":
            verb = "resume"
        if verb != "nothing":
            status, answer = house.ask("POST", f"/jobs/{row.id}/{verb}")
            assert status in (200, 202, 409), (verb, status, answer)
            if verb == "cancel" and status != 409:
                self.cancelled[row.id] = status

    def _rests(self) -> bool:
        """Whether its users have paused all there is: then nothing will run until they resume."""
        rows = [row for row in self.house.queue.page(limit=10_000)[0] if row.status not in FINAL]
        return all(row.status == Status.PAUSED and row.reason_code == "user" for row in rows)

    def _note_ends(self) -> None:
        for row in self.house.queue.page(statuses=sorted(FINAL), limit=10_000)[0]:
            was = self.ends.setdefault(row.id, row.status)
            assert was == row.status, f"{row.id} was {was} and is {row.status}"

    # ---- the judgement ----

    def _settle(self, whole: Numbers) -> None:
        house = self.house
        for name in house.points.armed():
            house.points.disarm(name)
        house.clock_ahead_s = 0.0
        roles: tuple[Role, ...] = ("worker", "api")
        for role in roles:
            house.kill(house.pids[role], signal.SIGCONT)
        house.until(self._is_dry, "the end of all jobs")
        self._note_ends()
        rows = {row.id: row for row in house.queue.page(limit=10_000)[0]}
        assert self.submitted <= set(rows), f"acknowledged and lost: {self.submitted - set(rows)}"
        assert len(rows) == len(self.submitted) + 1, "a job that nobody submitted"
        for job_id in self.submitted:
            if job_id in self.cancelled:
                is_done = self.cancelled[job_id] == 200  # else the end may have come first
                assert not is_done or rows[job_id].status == Status.CANCELLED, job_id
            if rows[job_id].status != Status.CANCELLED:
                assert_same(numbers(house.queue, job_id), whole, job_id)
            else:
                assert job_id in self.cancelled, f"{job_id} was cancelled by nobody"
        assert_settled(house)

    def _is_dry(self) -> bool:
        rows = [row for row in self.house.queue.page(limit=10_000)[0] if row.status not in FINAL]
        for row in rows:
            if row.status == Status.PAUSED and row.reason_code == "user":
                self.house.ask("POST", f"/jobs/{row.id}/resume")
        return not rows


def rampage(kills: int, seed: int, url: str = "sqlite") -> dict[str, Any]:
    """Do one round; return its totals. What fails says how to do it again."""
    began = time.monotonic()
    fast = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no power is cut here: a disk adds nothing
    root = Path(tempfile.mkdtemp(prefix="saimp-nemesis-", dir=fast))
    try:
        with ExitStack() as stack:
            (root / "data").mkdir()
            database = stack.enter_context(fresh_database()) if url == "postgres" else None
            house = stack.enter_context(open_house(root, database))
            nemesis = Nemesis(house, seed)
            nemesis.run(kills)
    except BaseException as error:
        again = f"python -m tests.rig.nemesis --kills {kills} --seed {seed} --url {url}"
        error.add_note(f"seed {seed}; again: {again}; left in {root}")
        raise
    with suppress(OSError):
        shutil.rmtree(root)
    return {
        "seed": seed,
        "engine": url,
        "kills": nemesis.kills,
        "jobs": len(nemesis.ends),
        "acknowledged": len(nemesis.submitted),
        "restarts": house.starts - 2,
        "seconds": round(time.monotonic() - began, 1),
        "faults": dict(sorted(nemesis.faults.items())),
    }


def main() -> int:
    """Read the options, do one round, print its totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(datetime.now(UTC).timestamp()))
    parser.add_argument("--url", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    print(json.dumps(rampage(options.kills, options.seed, options.url)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
