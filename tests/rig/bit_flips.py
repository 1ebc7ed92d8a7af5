"""One flipped bit in a checkpoint: never loaded, never served.

    python -m tests.rig.bit_flips --flips 10000 --seed 7

A tiny run leaves a resume checkpoint and a best. Then one bit at a time is flipped at a random place of one
of them, the file's times left as they were, as a rotting disk does it; and every door it is read by must
refuse it: the supervisor's look before a start, the runner's restore (of either file), `init_from`, and the
download.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from app.api.services import Services
from app.jobs.files import Paths
from app.jobs.queue import Checkpoint, Facts
from app.main import create_app
from app.migrate import upgrade
from app.settings import Settings
from tests.factories import OWNER, SLOT
from tests.factories import make_request as make_job
from tests.worker.engine.factory import make_request, make_run
from worker.assignment import Weights
from worker.engine.errors import CorruptCheckpoint
from worker.engine.events import BestFile, CheckpointSaved, EpochDone
from worker.engine.loop import fit
from worker.engine.resume import restore
from worker.engine.run import Run
from worker.publish import unreadable
from worker.runner import start_from


@dataclass
class Target:
    """A job with both files on disk, and everything that reads them."""

    folder: Path
    run: Run
    saved: Checkpoint
    best: BestFile
    client: TestClient
    paths: Paths

    @property
    def resume_path(self) -> Path:
        return self.paths.job(self.saved.job_id) / self.saved.name

    @property
    def best_path(self) -> Path:
        return self.resume_path.with_name(self.best.name)

    def doors(self, path: Path) -> dict[str, bool]:
        """Open every door that reads a file; say which of them let it in."""
        doors = {"supervisor": unreadable(self.paths, self.saved) is None, "restore": self._restores()}
        if path == self.best_path:
            doors |= {"init_from": self._starts(), "download": self._serves(), "range": self._serves(0)}
        return doors

    def _restores(self) -> bool:
        try:
            restore(self.run, self.resume_path, sha256=self.saved.sha256)
        except CorruptCheckpoint:
            return False
        return True

    def _starts(self) -> bool:
        try:
            start_from(self.run, Weights(self.best_path, self.best.sha256, is_normalized=False))
        except CorruptCheckpoint:
            return False
        return True

    def _serves(self, first: int | None = None) -> bool:
        headers = {} if first is None else {"Range": f"bytes={first}-"}
        answer = self.client.get(f"/jobs/{self.saved.job_id}/checkpoint", headers=headers)
        if answer.status_code == 409:
            assert answer.json()["code"] == "checkpoint_corrupt", answer.text
            return False
        return True


@contextmanager
def target(root: Path) -> Iterator[Target]:
    """Train a tiny run and enter it into a queue as a job that has ended."""
    settings = Settings(data_root=root / "data", logs_root=root / "logs", auth="off")
    app = create_app(settings)
    services: Services = app.state.services
    upgrade(services.database)
    queue = services.queue
    job_id = str(queue.submit(make_job())[0].id)
    taken = queue.claim(OWNER, SLOT)
    assert taken is not None
    folder = services.paths.attempt(job_id, taken.attempt)
    folder.mkdir(parents=True)
    request = make_request(training={"epochs": 2}, checkpoint={"every_s": 0})
    events = list(fit(make_run(request, directory=folder)))
    # The last one was made in the second epoch: the best of the first goes with it.
    saved = [event for event in events if isinstance(event, CheckpointSaved)][-1]
    best = next(event.best for event in events if isinstance(event, EpochDone))
    assert best is not None
    assert saved.best == best.name
    name = f"attempts/{taken.attempt}/{best.name}"
    progress = {
        "best_epoch": 1,
        "best_val_loss": 1.0,
        "best_val_accuracy": 0.5,
        "best_file": name,
        "best_sha256": best.sha256,
        "best_bytes": best.size,
    }
    queue.record(job_id, taken.attempt, Facts(progress=progress))
    at = Checkpoint(
        job_id,
        1,
        taken.attempt,
        2,
        0,
        saved.step,
        False,
        f"attempts/{taken.attempt}/{saved.name}",
        saved.sha256,
        saved.size,
        datetime.now(UTC),
        name,
        best.sha256,
    )
    again = root / "again"
    again.mkdir()
    run = make_run(request, directory=again)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield Target(folder, run, at, best, client, services.paths)
    services.database.dispose()


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file and leave its times alone."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(position // 8)
        byte = file.read(1)[0] ^ (1 << position % 8)
        file.seek(position // 8)
        file.write(bytes([byte]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def damage(flips: int, seed: int) -> dict[str, Any]:
    """Flip so many bits, one at a time; return how many were tried at each door. Raises at a silent load."""
    began = time.monotonic()
    draw = random.Random(seed)
    tried: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="saimp-flips-") as folder, target(Path(folder)) as victim:
        assert all(victim.doors(victim.best_path).values()), "sound files go through every door"
        for number in range(flips):
            path = victim.best_path if number % 2 else victim.resume_path
            position = draw.randrange(path.stat().st_size * 8)
            flip(path, position)
            doors = victim.doors(path)
            let_in = [door for door, is_open in doors.items() if is_open]
            assert not let_in, f"seed {seed}, flip {number}: bit {position} of {path.name} passed {let_in}"
            tried.update(f"{door} ({path.suffix})" for door in doors)
            flip(path, position)
        assert all(victim.doors(victim.best_path).values()), "restored files go through again"
    seconds = round(time.monotonic() - began, 1)
    return {
        "seed": seed,
        "flips": flips,
        "silent": 0,
        "seconds": seconds,
        "doors": dict(sorted(tried.items())),
    }


def main() -> int:
    """Read the options, flip, print the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(datetime.now(UTC).timestamp()))
    options = parser.parse_args()
    print(json.dumps(damage(options.flips, options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
