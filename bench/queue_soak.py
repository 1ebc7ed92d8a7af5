"""Many processes on one queue: no job claimed twice, none left behind, no "database is locked".

    python bench/queue_soak.py --jobs 100000
    python bench/queue_soak.py --jobs 100000 --url postgres      (a server of its own, as in the tests)

Processes are forked from this one; some submit, the others claim and finish. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.db import Database, connect
from app.errors import StorageUnavailable
from app.jobs.config import JobRequest
from app.jobs.queue import Owner, Queue, QueueFull, Reason
from app.jobs.states import Status
from app.migrate import upgrade

REQUEST = JobRequest.model_validate({"data": {"path": "demo"}})
BUSY_TIMEOUT_S = 60.0


@dataclass
class Seen:
    """What one process has seen."""

    submitted: list[str] = field(default_factory=list)
    claimed: list[tuple[str, int]] = field(default_factory=list)
    claim_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main() -> int:
    options = _options()
    with ExitStack() as stack:
        url = _url(options.url, stack)
        began = time.monotonic()
        all_seen = soak(url, options.jobs, options.claimers, options.submitters)
        result = judge(url, all_seen, time.monotonic() - began)
    print(json.dumps({"engine": url.partition(":")[0].partition("+")[0], **result}))
    return 0 if result["is_sound"] else 1


def soak(url: str, jobs: int, claimers: int, submitters: int) -> list[Seen]:
    """Fork the processes and gather what they saw."""
    stop_file = Path(tempfile.mkdtemp()) / "stop"  # there once all is submitted
    roles = [("submit", jobs // submitters + (number < jobs % submitters)) for number in range(submitters)]
    roles += [("claim", number) for number in range(claimers)]
    children = [_fork(url, role, number, stop_file) for role, number in roles]
    seen = []
    for place, (pid, pipe) in enumerate(children):
        with os.fdopen(pipe) as file:
            seen.append(Seen(**json.load(file)))
        os.waitpid(pid, 0)
        if place == submitters - 1:
            stop_file.touch()
    stop_file.unlink()
    stop_file.parent.rmdir()
    return seen


def judge(url: str, all_seen: list[Seen], took_s: float) -> dict[str, Any]:
    """Hold what the processes saw against each other and against the database."""
    submitted = [job_id for seen in all_seen for job_id in seen.submitted]
    claims = Counter(job_id for seen in all_seen for job_id, _ in seen.claimed)
    errors = Counter(error for seen in all_seen for error in seen.errors)
    claim_s = sorted(one for seen in all_seen for one in seen.claim_s)
    database = connect(url)
    left = Queue(database).page(statuses=[Status.QUEUED, Status.RUNNING, Status.PAUSED], limit=1)[0]
    database.dispose()
    result = {
        "jobs": len(submitted),
        "processes": len(all_seen),
        "double_claims": sum(count - 1 for count in claims.values()),
        "lost": len(set(submitted) - set(claims)),
        "left": len(left),
        "errors": dict(errors),
        "seconds": round(took_s, 1),
        "jobs_per_s": round(len(claims) / took_s, 1),
        "claim_ms_p50": round(1000 * claim_s[len(claim_s) // 2], 2),
        "claim_ms_p99": round(1000 * claim_s[len(claim_s) * 99 // 100], 2),
    }
    is_sound = not (result["double_claims"] or result["lost"] or result["left"] or errors)
    return {"is_sound": is_sound, **result}


def _fork(url: str, role: str, number: int, stop_file: Path) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    seen = Seen()
    database = connect(url, busy_timeout_s=BUSY_TIMEOUT_S)
    try:
        if role == "submit":
            _submit(database, number, seen)
        else:
            _claim(database, number, stop_file, seen)
    except BaseException as error:
        seen.errors.append(repr(error)[:200])
    finally:
        with os.fdopen(writer, "w") as file:
            json.dump(asdict(seen), file)
        os._exit(0)


def _submit(database: Database, count: int, seen: Seen) -> None:
    queue = Queue(database)
    while len(seen.submitted) < count:
        try:
            seen.submitted.append(queue.submit(REQUEST)[0].id)
        except QueueFull:
            time.sleep(0.2)
        except StorageUnavailable as error:
            seen.errors.append(error.message)


def _claim(database: Database, number: int, stop_file: Path, seen: Seen) -> None:
    queue = Queue(database)
    owner = Owner("soak", "boot", os.getpid(), 0.0)
    while True:
        is_last_look = stop_file.exists()
        try:
            began = time.monotonic()
            taken = queue.claim(owner, f"soak/{number}")
            if taken is None:
                if is_last_look:
                    return
                time.sleep(0.2)
                continue
            seen.claim_s.append(time.monotonic() - began)
            seen.claimed.append((taken.job_id, taken.attempt))
            queue.finish(taken.job_id, taken.attempt, Reason("completed"))
        except StorageUnavailable as error:
            seen.errors.append(error.message)


def _url(url: str, stack: ExitStack) -> str:
    if url == "postgres":
        from tests.postgres.server import fresh_database, url_of  # noqa: PLC0415 - only where it is installed

        database = stack.enter_context(fresh_database())
        database.dispose()
        return url_of(database)
    if url == "sqlite":
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="saimp-"))
        url = f"sqlite:///{folder}/soak.db"
    database = connect(url)
    upgrade(database)
    database.dispose()
    return url


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="sqlite", help="sqlite, postgres (each of its own), or a URL")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--claimers", type=int, default=16)
    parser.add_argument("--submitters", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
