"""A life in which every verb is used and every failpoint is reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.db import Database
from app.jobs.queue import Queue, Row
from app.jobs.states import Status
from tests.factories import make_database, write_dataset
from tests.rig.files import assert_sound, assert_sound_champion
from tests.rig.house import House, zygote
from tests.rig.oracle import ROWS, TINY
from tests.rig.witness import violations

MAX_LIVES = 6


@contextmanager
def open_house(root: Path, database: Database | None = None) -> Iterator[House]:
    """Have a house at work on a small dataset, and nothing left of it afterwards."""
    write_dataset(root / "data" / "demo", rows=ROWS)
    own = database or make_database(root / "data")
    with zygote(root) as warm:
        house = House(root, warm, Queue(own))
        house.start("worker")
        house.start("api")
        try:
            yield house
        finally:
            house.close()
    own.dispose()


def assert_settled(house: House) -> None:
    """Stop the house, and hold what it leaves against what it must leave."""
    house.until(house.is_ready, "the worker")
    assert (house.stop("worker"), house.stop("api")) == (0, 0)
    assert_sound(house.queue, house.root)
    assert_sound_champion(house.queue.database, house.root)
    assert violations(house.witness) == ""
    assert house.left_over() == []


def submit(house: House, key: str, **sections: Any) -> str:
    """Submit the tiny job over HTTP; the key makes sure that it is one, however often the API dies."""
    status, made = house.ask("POST", "/jobs", {**TINY, **sections}, key=key)
    assert status in (200, 201), made
    return str(made["id"])


def live(house: House, key: str) -> str:
    """Lead one life and return the job that lived it: submitted, paused, drained, ended; others come and go.

    What is not reached (the training may be over too soon) is reached in another life.
    """
    main = submit(house, key)
    # Not comparable with the champion, so that it becomes it.
    other = submit(house, f"{key}-other", data={**TINY["data"], "embargo_s": len(key)})
    cancelled = submit(house, f"{key}-cancelled")
    _insist(house, "PATCH", f"/jobs/{other}", {"name": "other"})
    house.ask("POST", f"/jobs/{cancelled}/move", {"before": other})
    _insist(house, "POST", f"/jobs/{cancelled}/cancel")
    for _ in range(MAX_LIVES):
        if not house.is_armed("pause", "suspend", "resume", "discard_checkpoint", "resume_at"):
            break
        if not _trains(house, main):
            break
        house.ask("POST", f"/jobs/{main}/pause")
        house.until(lambda: house.queue.get(main).status not in ("running", "queued"), "the pause")
        _damage_newest(house, main)
        house.ask("POST", f"/jobs/{main}/resume")
    for _ in range(MAX_LIVES):
        if not house.is_armed("drain", "release", "open") or not _trains(house, main):
            break
        house.ask("POST", "/queue/drain?running=preempt")
        house.until(lambda: not _is_running(house), "the drain")
        house.ask("POST", "/queue/open")
    for job_id in (main, other, cancelled):
        ended(house, job_id)
    # The worker crowns `other` when it has ended, and nobody once `main` is promoted.
    house.until(lambda: not house.points.is_armed("crown.between_links"), "the champion")
    _insist(house, "POST", f"/jobs/{main}/promote")
    status, _ = house.ask("DELETE", f"/jobs/{cancelled}")
    assert status in (204, 404), status
    while house.is_armed("leave"):
        house.until(house.is_ready, "the worker")
        house.stop("worker")
        house.start("worker")
    house.until(house.is_ready, "the worker")
    return main


def ended(house: House, job_id: str, *, within_s: float = 240.0) -> Row:
    """Wait for the end of a job, whatever dies meanwhile."""

    def final() -> Row | None:
        row = house.queue.get(job_id)
        return row if row.finished_at is not None else None

    row: Row = house.until(final, f"the end of {job_id}", within_s=within_s)
    return row


def _insist(house: House, method: str, path: str, body: Any = None) -> None:
    status, answer = house.ask(method, path, body)
    assert status in (200, 202), (path, status, answer)


def _trains(house: House, job_id: str) -> bool:
    """Wait until a job has a checkpoint and runs; False when it has ended instead."""

    def at_work() -> Row | None:
        row = house.queue.get(job_id)
        is_ready = row.status == Status.RUNNING and house.queue.checkpoints(job_id)
        return row if is_ready or row.finished_at is not None else None

    row: Row = house.until(at_work, f"the training of {job_id}")
    return row.finished_at is None


def _is_running(house: House) -> bool:
    return bool(house.queue.page(statuses=[Status.RUNNING], limit=1)[0])


def _damage_newest(house: House, job_id: str) -> None:
    """Flip a bit of the newest checkpoint, while there is an older one to go back to."""
    saved = house.queue.checkpoints(job_id)
    if len(saved) < 2 or not house.is_armed("discard_checkpoint"):
        return
    path = house.root / "data" / "jobs" / job_id / saved[0].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
