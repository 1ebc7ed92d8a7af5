"""A database of the schema before champions were rows, with what jobs left on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from app import migrate
from app.db import Database, connect
from app.jobs.comparison import comparison_key
from app.jobs.config import JobRequest
from app.jobs.files import Paths
from app.jobs.queue import Queue
from app.jobs.scores import scores
from tests.factories import make_request
from tests.postgres.engines import ENGINES
from tests.postgres.server import fresh_database

BEFORE = "0003"


@dataclass
class Past:
    """A data root as the version before left it."""

    database: Database
    paths: Paths
    number: int = 0

    def ended(self, loss: float, request: JobRequest | None = None, *, key: str = "a" * 64) -> str:
        """Let a job have ended with a best, the later the higher its number; its key only in its sidecar."""
        self.number += 1
        job_id = f"01ARZ3NDEKTSV4RRFFQ69G5F{self.number:02d}"
        config = json.dumps((request or make_request()).model_dump(mode="json"))
        name = "attempts/1/best-1.pth"
        with self.database.writing() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO job (id, tags, metadata, status, reason_code, priority, max_attempts,"
                    " attempt, crashes, config, config_hash, warnings, created_at, finished_at, runtime_s,"
                    " seq, best_epoch, best_val_loss, best_file, best_sha256) VALUES (:id, '[]', '{}',"
                    " 'succeeded', 'completed', 0, 3, 1, 0, :config, 'x', '[]', 0, :at, 0, 1, 1, :loss,"
                    " :name, :sha)"
                ),
                {
                    "id": job_id,
                    "config": config,
                    "at": self.number,
                    "loss": loss,
                    "name": name,
                    "sha": job_id,
                },
            )
        about = {"job_id": job_id, "sha256": job_id, "comparison_key": key, "metrics": {"val_loss": loss}}
        best = self.paths.job(job_id) / name
        best.parent.mkdir(parents=True)
        for path in (best, self.paths.best(job_id)):
            path.write_text(job_id)
            path.with_suffix(".json").write_text(json.dumps(about))
        return job_id

    def crowned(self, of: str, /, **more: Any) -> None:
        about = json.loads(self.paths.best(of).with_suffix(".json").read_text())
        self.paths.champion().write_text(self.paths.best(of).read_text())
        self.paths.champion().with_suffix(".json").write_text(json.dumps({**about, **more}))

    def upgraded(self) -> Queue:
        """Bring it to this version and start: the rows have their say."""
        migrate.upgrade(self.database, self.paths.data_root)
        queue = Queue(self.database, paths=self.paths)
        queue.follow_champion()
        return queue


@pytest.fixture(params=ENGINES)
def past(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Past]:
    with ExitStack() as stack:
        if request.param == "postgres":
            database = stack.enter_context(fresh_database(is_migrated=False))
        else:
            database = connect(f"sqlite:///{tmp_path / 'saimp.db'}")
            stack.callback(database.dispose)
        with database.writing() as connection:
            config = migrate._config()
            config.attributes |= {"connection": connection}
            command.upgrade(config, BEFORE)
        yield Past(database, Paths(tmp_path, tmp_path))


def test_jobs_take_their_key_from_their_description_and_the_best_stays_champion(past: Past) -> None:
    best, other, last = past.ended(1.0), past.ended(0.1, key="b" * 64), past.ended(2.0)
    past.crowned(best)
    queue = past.upgraded()
    assert past.paths.champion().read_text() == best
    found, _ = queue.champions(limit=10)
    assert [(one.row.id, one.is_behind_file) for one in found] == [(best, True), (other, False)]
    assert [queue.get(job_id).ending for job_id in (best, other, last)] == [1, 2, 3]


def test_a_description_that_is_missing_or_damaged_costs_a_key_and_nothing_else(past: Past) -> None:
    whole = past.ended(3.0)
    gone, published_alone = past.ended(1.0), past.ended(2.5)
    for path in (past.paths.best(gone), past.paths.job(gone) / "attempts/1/best-1.pth"):
        path.with_suffix(".json").unlink()
    (past.paths.job(published_alone) / "attempts/1/best-1.json").unlink()
    damaged = {}
    for content in (
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"comparison_key": 5}',
        f'{{"comparison_key": "{"k" * 999}"}}',
    ):
        damaged[past.ended(0.5)] = content
    for job_id, content in damaged.items():
        for path in (past.paths.best(job_id), past.paths.job(job_id) / "attempts/1/best-1.pth"):
            path.with_suffix(".json").write_text(content)
    queue = past.upgraded()
    assert [queue.get(job_id).comparison_key for job_id in (gone, *damaged)] == [None] * 7
    assert queue.champion_ids(["a" * 64]) == {published_alone}
    assert queue.get(whole).comparison_key == "a" * 64


def test_the_promotion_that_stands_goes_on(past: Past) -> None:
    best, chosen = past.ended(1.0), past.ended(2.0)
    past.crowned(chosen, pinned=True)
    queue = past.upgraded()
    assert queue.get(chosen).is_promoted
    assert past.paths.champion().read_text() == chosen
    queue.end_promotion(chosen)
    assert past.paths.champion().read_text() == best


def test_a_champion_whose_job_was_deleted_is_put_aside(past: Past) -> None:
    job_id = past.ended(1.0)
    past.crowned(job_id, job_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", sha256="0123456789abcdef")
    past.paths.champion().write_text("the only copy")
    past.upgraded()
    assert past.paths.champion().read_text() == job_id
    assert (past.paths.data_root / "saimp_best.01234567.pth").read_text() == "the only copy"
    assert (past.paths.data_root / "saimp_best.01234567.json").exists()


@pytest.mark.parametrize("job_id", ["\0", "\ud800", 5, None])
def test_a_champion_that_names_no_job_is_none_of_ours(past: Past, job_id: Any) -> None:
    best = past.ended(1.0)
    past.crowned(best, job_id=job_id, pinned=True)
    assert not past.upgraded().get(best).is_promoted
    assert not list(past.paths.data_root.glob("saimp_best.*.*"))


def test_keys_of_before_are_those_of_today_unless_group_or_non_finite_were_chosen(past: Past) -> None:
    loss = {"name": "cross_entropy", "class_weights": [1.0, 2.0]}
    requests = [
        make_request(data={"path": "demo", **data}, loss=loss)
        for data in (
            {},
            {"group": "symbol"},
            {"non_finite": "zero"},
            {"group": "symbol", "non_finite": "skip"},
        )
    ]
    settled: dict[str, Any] = {"fingerprint": "f", "cuts_ns": (5, None), "horizon_s": 1.0, "label_end": None}
    settled["class_weights"] = [1.0, 2.0]
    today = [comparison_key(request, **settled) for request in requests]
    assert len(set(today)) == 4
    # Written down when none of the two counted yet.
    before = "1b1a475cc287c3083cf9dedc5bf0dc48d9c57a9599aa359d54d338d906696c7b"
    assert today[0] == before
    ids = [past.ended(1.0, request, key=before) for request in requests]
    queue = past.upgraded()
    assert [queue.get(job_id).comparison_key for job_id in ids] == today


def test_the_bests_of_before_are_scored_as_they_were(past: Past) -> None:
    job_id = past.ended(1.0)
    confusion = [[3, 1, 0], [2, 4, 0], [0, 5, 9]]
    with past.database.writing() as connection:
        for epoch, is_best in ((1, True), (2, False)):
            connection.execute(
                sa.text(
                    "INSERT INTO epoch_row (job_id, epoch, seq, time, best, confusion, skipped_steps)"
                    " VALUES (:id, :epoch, :epoch, 0, :best, :confusion, 0)"
                ),
                {"id": job_id, "epoch": epoch, "best": is_best, "confusion": json.dumps(confusion)},
            )
    queue = past.upgraded()
    assert scores(queue.best_margins([job_id])[job_id]) == scores(confusion)
