"""The champion over HTTP, with a real worker: right whatever ends, is promoted, deleted or killed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.client import Client, ServiceProblem
from tests.acceptance.site import ENDLESS, QUICK, worker
from tests.factories import make_database, write_dataset
from tests.failpoints import Failpoints
from tests.processes import eventually, started

ONCE: dict[str, Any] = {
    **QUICK,
    "training": {"epochs": 1, "batch_size": 15, "accumulation_steps": 1, "threads": 1},
    "checkpoint": {"every_s": None},
}


@dataclass
class House:
    """A service, and what its champions must be by the rules alone."""

    root: Path
    client: Client
    points: Failpoints
    ended: list[tuple[str, str, float]] = field(default_factory=list)  # (job, dataset, loss), in order
    promoted: str | None = None

    def submit(self, dataset: str, lr: float, body: dict[str, Any] = ONCE) -> str:
        data = {**QUICK["data"], "path": dataset}
        job = self.client.submit({**body, "data": data, "optimizer": {"name": "adamw", "lr": lr}})
        return str(job["id"])

    def ends(self, job_id: str) -> None:
        """Wait for the end of a job, and look at once."""
        job = self.client.wait(job_id, timeout_s=120)
        self.ended.append((job_id, job["config"]["data"]["path"], job["best"]["val_loss"]))
        self.looks_right()

    def trains(self, dataset: str, lr: float) -> str:
        job_id = self.submit(dataset, lr)
        self.ends(job_id)
        return job_id

    def best_of(self, dataset: str) -> str:
        of_dataset = [job for job in self.ended if job[1] == dataset]
        if self.promoted in [job_id for job_id, _, _ in of_dataset]:
            assert self.promoted is not None
            return self.promoted
        return min(of_dataset, key=lambda job: job[2])[0]

    def looks_right(self) -> None:
        """Hold the file and every answer against the rules."""
        behind = self.promoted or (self.best_of(self.ended[-1][1]) if self.ended else None)
        weights = self.root / "data" / "saimp_best.pth"
        if behind is None:
            assert not weights.exists()
            assert self.client.champions()["data"] == []
            return
        about = json.loads(weights.with_suffix(".json").read_text())
        assert about["job_id"] == behind
        assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        datasets = list(dict.fromkeys(dataset for _, dataset, _ in reversed(self.ended)))
        listed = self.client.champions()["data"]
        assert [one["job"]["id"] for one in listed] == [self.best_of(dataset) for dataset in datasets]
        assert [one["job"]["id"] for one in listed if one["behind_file"]] == [behind]
        assert [one["job"]["id"] for one in listed if one["promoted"]] == [self.promoted] * bool(
            self.promoted
        )
        assert self.client.resolve("@best") == listed[0]["job"]["id"]
        for dataset in datasets:
            assert self.client.resolve(f"@best:{dataset}") == self.best_of(dataset)
        jobs = {job["id"]: job["champion"] for job in self.client.jobs(limit=100)["data"]}
        assert {job_id for job_id, is_one in jobs.items() if is_one} == {one["job"]["id"] for one in listed}

    def promotes(self, job_id: str) -> None:
        self.client.promote(job_id)
        self.promoted = job_id
        self.looks_right()

    def ends_promotion(self) -> None:
        assert self.promoted is not None
        self.client.end_promotion(self.promoted)
        self.promoted = None
        self.looks_right()

    def deletes(self, job_id: str, *, drop_champion: bool = False) -> None:
        self.client.delete(job_id, drop_champion=drop_champion)
        self.ended = [job for job in self.ended if job[0] != job_id]
        self.promoted = None if self.promoted == job_id else self.promoted
        self.looks_right()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    for seed, name in enumerate(("a", "b")):
        write_dataset(tmp_path / "data" / name, rows=200, seed=seed)
    make_database(tmp_path / "data").dispose()
    points = Failpoints(tmp_path / "points")
    with started("-m", "app.cli.main", "api", "--port", "0", root=tmp_path) as api:
        url = api.says("listening on ").removeprefix("listening on ").strip()
        with Client(url, patience_s=20) as client:
            yield House(tmp_path, client, points)


def test_the_champion_is_right_after_every_ending_promotion_and_deletion(house: House) -> None:
    with worker(house.root):
        house.looks_right()
        for dataset, lr in (("a", 1e-3), ("b", 1e-3), ("a", 1e-6), ("a", 1e-2), ("b", 1e-6)):
            house.trains(dataset, lr)
        endless = house.submit("b", 1e-2, ENDLESS)
        eventually(lambda: house.client.job(endless)["best"], what="a best of the endless job")
        house.looks_right()
        house.client.cancel(endless)
        house.ends(endless)

        worst = max((job for job in house.ended if job[1] == "a"), key=lambda job: job[2])[0]
        house.promotes(worst)
        house.trains("a", 3e-2)
        house.promotes(house.ended[1][0])
        house.promotes(worst)
        with pytest.raises(ServiceProblem, match="is_champion"):
            house.client.delete(worst)
        house.looks_right()
        house.ends_promotion()

        house.promotes(worst)
        house.deletes(worst, drop_champion=True)
        hidden = house.best_of("b")
        house.deletes(hidden)  # not behind the file: no word is needed
        while house.ended:
            behind = house.best_of(house.ended[-1][1])
            with pytest.raises(ServiceProblem, match="is_champion"):
                house.client.delete(behind)
            house.deletes(behind, drop_champion=True)


def test_a_worker_that_dies_between_row_and_file_leaves_nothing_wrong(house: House) -> None:
    job_id = house.submit("a", 1e-3)
    points = iter(("finish.before_commit", "crown.between_links", "finish.after_commit"))
    while True:
        with worker(house.root, **house.points.environment) as process:
            if house.client.job(job_id)["status"] == "queued" and house.ended:
                eventually(lambda: _is_right(house), what="the file's being put right at the start")
            house.client.open_queue()
            house.ends(job_id)
            if (point := next(points, None)) is None:
                break
            house.points.arm(point, "kill")
            job_id = house.submit("ab"[len(house.ended) % 2], 1e-3)
            eventually(lambda: process.popen.poll() is not None, what=f"the death at {point}")
            house.client.drain(finish_running=True)  # so that the next worker does no more than it must


def _is_right(house: House) -> bool:
    try:
        house.looks_right()
    except AssertionError:
        return False
    return True
