"""What a follower of a job knows: the job, its epochs so far, the newest batch and the newest memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from app.client import Client, Json
from app.jobs.states import FINAL

_WAIT_S = 1.0  # how long a poll waits for news: the status is looked at in between
_PAUSE_S = 0.25  # between polls, however much there is


@dataclass
class Story:
    """A job as followed so far."""

    job: Json
    epochs: dict[int, Json] = field(default_factory=dict)
    batch: Json | None = None
    memory: Json | None = None

    @property
    def is_over(self) -> bool:
        return self.job["status"] in FINAL

    @property
    def last_epoch(self) -> Json | None:
        return self.epochs[max(self.epochs)] if self.epochs else None

    @property
    def best_epoch(self) -> Json | None:
        """The epoch whose weights are the best so far."""
        best = self.job.get("best") or {}
        return self.epochs.get(best.get("epoch", 0))

    def take(self, job: Json, page: Json) -> None:
        """Go on with a page of metrics. A rewind drops what lies beyond it: it is measured again."""
        self.job = job
        for rewind in page.get("rewinds") or ():
            self.epochs = {number: row for number, row in self.epochs.items() if number < rewind["epoch"]}
            self.batch = None
        for row in page.get("epochs") or ():
            self.epochs[row["epoch"]] = row
        self.batch = _newest(page.get("batches")) or self.batch
        self.memory = _newest(page.get("system")) or self.memory


def follow(client: Client, job_id: str, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[Story]:
    """Yield the story at every change worth a look, at last when the job has ended and all rows are in."""
    story = Story(client.job(job_id))
    yield story
    cursor: str | None = None
    while True:
        # The job first: rows that came before its end are then in the page behind.
        job = client.job(job_id)
        is_over = job["status"] in FINAL
        page = client.metrics(job_id, after=cursor, wait=None if is_over or cursor is None else _WAIT_S)
        cursor = page["next_after"]
        story.take(job, page)
        yield story
        if page.get("has_more"):
            continue
        if is_over:
            return
        sleep(_PAUSE_S)


def _newest(columns: dict[str, list[Any]] | None) -> Json | None:
    if not columns or not columns.get("time"):
        return None
    return {name: values[-1] for name, values in columns.items() if values}
