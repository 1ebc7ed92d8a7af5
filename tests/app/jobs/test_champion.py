"""Which job is the champion, by the rows; and the file in the data root, which follows them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app import failpoints
from app.db import Database
from app.errors import IllegalTransition, StorageUnavailable
from app.jobs import champion
from app.jobs.files import Paths, sidecar
from app.jobs.queue import Claim, Facts, IsChampion, Queue, Reason
from app.jobs.tables import job
from tests.app.api.service import epoch
from tests.factories import OWNER, SLOT, Clock, make_request
from tests.failpoints import Failpoints

A, B = "a" * 64, "b" * 64
DONE = Reason("completed")


@dataclass(frozen=True)
class Desk:
    """A queue that keeps the champion's file, and jobs that end as told."""

    queue: Queue
    paths: Paths

    def begin(self, loss: float | None, key: str | None = A, *, slot: str = SLOT, **sections: Any) -> Claim:
        """Let a job run that has a best."""
        self.queue.submit(make_request(**sections))
        claim = self.queue.claim(OWNER, slot)
        assert claim is not None
        self.improve(claim, loss, key)
        return claim

    def improve(self, claim: Claim, loss: float | None, key: str | None = A, epoch: int = 1) -> None:
        self.queue.record(claim.job_id, claim.attempt, self.best(claim, loss, key, epoch))

    def best(self, claim: Claim, loss: float | None, key: str | None = A, epoch: int = 1) -> Facts:
        """Make a best on disk, and the facts that tell of it."""
        name, content = f"attempts/1/best-{epoch}.pth", f"{claim.job_id} {epoch}"
        weights = self.paths.job(claim.job_id) / name
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_text(content)
        sidecar(weights).write_text(json.dumps({"sha256": content}))
        best: Mapping[str, Any] = {
            "best_epoch": epoch,
            "best_val_loss": loss,
            "best_file": name,
            "best_sha256": content,
            "best_bytes": 1,
            "comparison_key": key,
        }
        return Facts(progress=best)

    def end(self, loss: float | None, key: str | None = A, reason: Reason = DONE, **sections: Any) -> str:
        """Let a job end with a best."""
        claim = self.begin(loss, key, **sections)
        self.queue.finish(claim.job_id, claim.attempt, reason)
        return claim.job_id

    @property
    def file(self) -> str | None:
        """The job whose best the file is; its description must be of the same best."""
        if not self.paths.champion().exists():
            assert not sidecar(self.paths.champion()).exists()
            return None
        content = self.paths.champion().read_text()
        assert json.loads(sidecar(self.paths.champion()).read_text()) == {"sha256": content}
        return content.split()[0]

    @property
    def champions(self) -> dict[str, str]:
        """The champion of each key, the newest first."""
        found, has_more = self.queue.champions(limit=100)
        assert not has_more
        by_key = {one.row.comparison_key: one.row.id for one in found}
        assert self.queue.champion_ids(by_key) == frozenset(by_key.values())
        assert [one.row.id for one in found if one.is_behind_file] == [self.file] * (self.file is not None)
        return by_key


@pytest.fixture
def desk(database: Database, tmp_path: Path) -> Desk:
    paths = Paths(tmp_path, tmp_path)
    return Desk(Queue(database, Clock(), paths), paths)


def test_a_job_of_other_data_does_not_hide_the_best_of_its_key(desk: Desk) -> None:
    good = desk.end(1.3006, A)
    other = desk.end(1.9, B)
    assert desk.file == other
    worse = desk.end(1.3884, A)
    assert worse != good
    assert desk.file == good
    assert list(desk.champions.items()) == [(A, good), (B, other)]


def test_a_tie_is_won_by_the_one_that_stood_first(desk: Desk) -> None:
    older, younger = desk.begin(1.0), desk.begin(1.0, slot="box/1")
    for claim in (younger, older):
        desk.queue.finish(claim.job_id, claim.attempt, DONE)
        assert desk.file == younger.job_id, "only a lower loss replaces it"
    assert desk.champions == {A: younger.job_id}


def test_endings_count_whatever_the_clock_says(desk: Desk) -> None:
    desk.end(1.0, A)
    clock = desk.queue.now
    assert isinstance(clock, Clock)
    clock.advance(-3600)
    last = desk.end(1.0, B)
    assert desk.file == last
    assert list(desk.champions) == [B, A]


def test_however_a_job_ended_its_best_counts(desk: Desk) -> None:
    for loss, code in ((3.0, "completed"), (2.0, "user"), (1.0, "diverged")):
        best = desk.end(loss, reason=Reason(code))
        assert desk.file == best
        assert desk.champions == {A: best}


def test_a_paused_job_that_is_cancelled_counts_at_once(desk: Desk) -> None:
    claim = desk.begin(1.0)
    desk.queue.suspend(claim.job_id, claim.attempt)
    assert desk.file is None
    desk.queue.cancel(claim.job_id)
    assert desk.file == claim.job_id


def test_a_job_that_crashed_too_often_counts(desk: Desk) -> None:
    claim = desk.begin(1.0, max_attempts=1)
    desk.queue.crash(claim.job_id, claim.attempt, Reason("internal", "It died."))
    assert desk.file == claim.job_id


def test_a_loss_that_is_no_number_wins_nothing(desk: Desk) -> None:
    desk.end(math.nan)
    assert desk.file is None
    assert desk.champions == {}
    best = desk.end(5.0)
    desk.end(math.inf)
    desk.end(math.nan, B)
    assert desk.file == best
    assert desk.champions == {A: best}


def test_a_best_of_the_last_commit_counts(desk: Desk) -> None:
    desk.end(2.0)
    claim = desk.begin(3.0)
    desk.queue.finish(claim.job_id, claim.attempt, DONE, desk.best(claim, 1.0, epoch=2))
    assert desk.file == claim.job_id


def test_what_still_runs_is_no_champion(desk: Desk) -> None:
    best = desk.end(2.0)
    desk.begin(1.0)
    assert desk.file == best
    assert desk.champions == {A: best}


def test_a_job_without_a_key_is_comparable_with_none(desk: Desk) -> None:
    best = desk.end(2.0)
    desk.end(1.0, None)
    assert desk.file == best
    assert desk.champions == {A: best}


def test_the_file_is_left_alone_by_folds(desk: Desk) -> None:
    best = desk.end(2.0, A)
    claim = desk.begin(1.0, B)
    with desk.queue.database.writing() as connection:
        config = {**claim.config, "data": {**claim.config["data"], "fold": {"index": 0, "count": 5}}}
        connection.execute(job.update().where(job.c.id == claim.job_id).values(config=config))
    desk.queue.finish(claim.job_id, claim.attempt, DONE)
    assert desk.file == best
    assert desk.champions == {B: claim.job_id, A: best}


def test_a_promotion_stands_until_it_ends(desk: Desk) -> None:
    best, chosen = desk.end(1.0), desk.end(2.0)
    for _ in range(2):
        assert desk.queue.promote(chosen).is_promoted
        assert desk.file == chosen
    desk.end(0.5, B)
    better = desk.end(0.9, A)
    assert desk.file == chosen
    assert desk.champions[A] == chosen
    for _ in range(2):
        assert not desk.queue.end_promotion(chosen).is_promoted
        assert desk.file == better
    assert desk.queue.end_promotion(best).is_promoted is False
    kinds = [event.kind for event in desk.queue.events(chosen)]
    assert (kinds.count("promoted"), kinds.count("promotion_ended")) == (1, 1)


def test_at_most_one_is_promoted(desk: Desk) -> None:
    first, second = desk.end(1.0, A), desk.end(1.0, B)
    desk.queue.promote(second)
    desk.queue.promote(first)
    assert desk.file == first
    assert not desk.queue.get(second).is_promoted
    assert desk.champions == {B: second, A: first}
    desk.queue.end_promotion(second)
    assert desk.file == first, "it had none to end"
    desk.queue.end_promotion(first)
    assert desk.file == second


def test_the_file_goes_along_with_a_promoted_job_that_gets_better(desk: Desk) -> None:
    desk.end(0.5)
    claim = desk.begin(2.0)
    desk.queue.promote(claim.job_id)
    assert desk.paths.champion().read_text() == f"{claim.job_id} 1"
    desk.improve(claim, 1.0, epoch=2)
    assert desk.paths.champion().read_text() == f"{claim.job_id} 2"
    assert desk.champions == {A: claim.job_id}


def test_a_job_that_runs_can_be_promoted_before_any_of_its_key_has_ended(desk: Desk) -> None:
    other = desk.end(1.0, B)
    claim = desk.begin(2.0, A)
    desk.queue.promote(claim.job_id)
    assert list(desk.champions.items()) == [(B, other), (A, claim.job_id)]


def test_without_a_best_there_is_no_promotion(desk: Desk) -> None:
    row, _ = desk.queue.submit(make_request())
    with pytest.raises(IllegalTransition):
        desk.queue.promote(row.id)


def test_a_promotion_whose_file_cannot_be_put_in_place_is_none(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, chosen = desk.end(1.0), desk.end(2.0)
    points = Failpoints(tmp_path / "points")
    monkeypatch.setattr(failpoints, "_folder", points.folder)
    points.arm("crown.between_links", "error:ENOSPC")
    with pytest.raises(StorageUnavailable, match="No space left"):
        desk.queue.promote(chosen)
    assert not desk.queue.get(chosen).is_promoted
    assert desk.file == best, "nothing was changed"


def test_a_full_disk_keeps_no_job_from_its_end(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk.end(2.0)
    points = Failpoints(tmp_path / "points")
    monkeypatch.setattr(failpoints, "_folder", points.folder)
    points.arm("crown.between_links", "error:ENOSPC")
    best = desk.end(1.0)
    assert desk.queue.get(best).status == "succeeded"
    assert "does not follow its champion yet: No space left" in caplog.text
    desk.end(3.0)
    assert desk.file == best, "the next ending puts it right"


def test_the_champion_is_deleted_only_when_told(desk: Desk) -> None:
    second, best = desk.end(2.0), desk.end(1.0)
    with pytest.raises(IsChampion):
        desk.queue.delete(best)
    desk.queue.delete(best, drops_champion=True)
    assert desk.file == second
    assert desk.champions == {A: second}
    desk.queue.delete(second, drops_champion=True)
    assert desk.file is None
    assert desk.champions == {}


def test_a_promoted_job_is_deleted_only_when_told(desk: Desk) -> None:
    best, chosen = desk.end(1.0), desk.end(2.0)
    desk.queue.promote(chosen)
    with pytest.raises(IsChampion):
        desk.queue.delete(chosen)
    desk.queue.delete(chosen, drops_champion=True)
    assert desk.file == best


def test_any_other_may_be_deleted_and_its_keys_next_best_follows(desk: Desk) -> None:
    second, best, newest = desk.end(2.0, A), desk.end(1.0, A), desk.end(1.0, B)
    desk.queue.delete(best)
    assert desk.champions == {B: newest, A: second}
    assert desk.file == newest


def test_the_file_stays_where_rows_know_nothing(desk: Desk) -> None:
    desk.paths.champion().write_text("of a database that is gone")
    desk.queue.follow_champion()
    desk.queue.delete(desk.end(math.nan))
    assert desk.paths.champion().read_text() == "of a database that is gone"


def test_the_file_stays_where_the_champions_own_files_are_gone(desk: Desk) -> None:
    second, best = desk.end(2.0), desk.end(1.0)
    (desk.paths.job(best) / "attempts/1/best-1.pth").unlink()
    desk.queue.follow_champion()
    assert desk.file == best
    assert desk.queue.get(second).ending == 1


def test_half_of_a_file_is_made_whole(desk: Desk) -> None:
    best = desk.end(1.0)
    weights, description = desk.paths.champion(), sidecar(desk.paths.champion())
    for damaged in ([weights], [description], [weights, description]):
        for path in damaged:
            path.unlink()
            path.write_text("{}")
        desk.queue.follow_champion()
        assert desk.file == best


def test_keys_are_paged_and_found_by_their_dataset(desk: Desk) -> None:
    ids = [desk.end(1.0, letter * 64, data={"path": path}) for letter, path in zip("abc", "xyx", strict=True)]
    seen, after, has_more = [], None, True
    while has_more:
        page, has_more = desk.queue.champions(limit=1, after=after)
        seen += [one.row.id for one in page]
        after = page[-1].newest
    assert seen == ids[::-1]
    found, _ = desk.queue.champions(limit=5, path="x")
    assert [one.row.id for one in found] == [ids[2], ids[0]]


def statements(database: Database, act: Callable[[], object]) -> list[tuple[str, Any]]:
    """Note what is asked of the database meanwhile, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, text: str, parameters: Any, *_more: object) -> None:
        seen.append((text, parameters))

    # On PostgreSQL both are one.
    engines = [database.write_engine, *([] if database.file is None else [database.read_engine])]
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", note)
    try:
        act()
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", note)
    return [one for one in seen if one[0].startswith("SELECT") and "FROM job" in one[0]]


def plan_of(database: Database, text: str, parameters: Any) -> str:
    """Ask an engine how it would do it; a small table PostgreSQL would rather read whole."""
    with database.reading() as connection:
        if connection.dialect.name == "postgresql":
            for way in ("seqscan", "sort", "bitmapscan"):
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
            return str(connection.exec_driver_sql(f"EXPLAIN {text}", parameters).all())
        return str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters).all())


def test_no_question_after_champions_reads_the_table(desk: Desk) -> None:
    for number in range(4):
        desk.end(1.0, "abcd"[number] * 64)
    desk.queue.promote(desk.end(2.0, A))
    database = desk.queue.database
    asked = [
        *statements(database, lambda: desk.queue.champion(A)),
        *statements(database, lambda: desk.queue.champion_ids([A, B])),
        *statements(database, lambda: desk.queue.champions(limit=3)),
        *statements(database, desk.queue.follow_champion),
    ]
    for text, parameters in asked:
        plan = plan_of(database, text, parameters)
        assert "SCAN job'" not in plan, (text, plan)
        assert "Seq Scan on job" not in plan, (text, plan)
        if "WHERE job.is_promoted" in text:
            assert "uq_job_promoted" in plan, plan
        if "LIMIT" in text and "UNION" not in text:
            assert "TEMP B-TREE" not in plan, plan


def test_more_keys_are_no_more_questions(desk: Desk) -> None:
    database, keys = desk.queue.database, [letter * 64 for letter in "abcdef"]
    for key in keys:
        desk.end(1.0, key)

    def asked(act: Callable[[], object]) -> int:
        return len(statements(database, act))

    for few, many in (
        (lambda: desk.queue.champion_ids(keys[:1]), lambda: desk.queue.champion_ids(keys)),
        (lambda: desk.queue.champions(limit=1), lambda: desk.queue.champions(limit=9)),
    ):
        assert asked(few) == asked(many)
    assert asked(lambda: desk.queue.champion_ids(keys)) == 2, "the promoted one, and the best of the keys"


def test_the_file_goes_back_with_a_promoted_job_that_does(desk: Desk) -> None:
    other = desk.end(0.5)
    claim = desk.begin(2.0)
    desk.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch_of(desk, claim, 1, 2.0)]))
    saved = {
        "epoch": 2,
        "batch": 0,
        "step": 9,
        "is_epoch_trained": False,
        "name": "attempts/1/resume",
        "sha256": "x",
        "size": 1,
    }
    desk.queue.record(claim.job_id, claim.attempt, Facts(checkpoints=[saved]))
    desk.queue.promote(claim.job_id)
    desk.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch_of(desk, claim, 2, 1.0)]))
    assert desk.paths.champion().read_text() == f"{claim.job_id} 2"
    (at,) = desk.queue.checkpoints(claim.job_id)
    desk.queue.resume_at(claim.job_id, claim.attempt, at)
    assert desk.queue.get(claim.job_id).best_epoch == 1
    assert desk.paths.champion().read_text() == f"{claim.job_id} 1"
    assert desk.champions == {A: claim.job_id}

    desk.queue.restart(claim.job_id, claim.attempt)
    row = desk.queue.get(claim.job_id)
    assert (row.is_promoted, row.best_file) == (True, None)
    assert desk.file == other, "a promotion without a best names no champion"
    assert desk.champions == {A: other}
    desk.improve(claim, 3.0)
    assert desk.file == claim.job_id
    assert desk.champions == {A: claim.job_id}


def epoch_of(desk: Desk, claim: Claim, number: int, loss: float) -> dict[str, Any]:
    """Make the row of an epoch that is the best so far, its file on disk."""
    best = desk.best(claim, loss, epoch=number).progress or {}
    files = {name: best[name] for name in ("best_file", "best_sha256", "best_bytes")}
    return {**epoch(number), "val_loss": loss, **files}


def test_a_promoted_job_that_never_got_its_best_back_is_deleted_only_when_told(desk: Desk) -> None:
    claim = desk.begin(1.0)
    desk.queue.promote(claim.job_id)
    desk.queue.restart(claim.job_id, claim.attempt)
    assert desk.queue.champions(limit=9) == ([], False)
    desk.queue.finish(claim.job_id, claim.attempt, DONE)
    with pytest.raises(IsChampion, match="is promoted"):
        desk.queue.delete(claim.job_id)
    desk.queue.delete(claim.job_id, drops_champion=True)


@pytest.mark.parametrize("verb", ["promote", "end_promotion", "finish", "delete", "cancel"])
def test_the_file_goes_back_when_the_transaction_comes_to_nothing(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    worse, best = desk.end(2.0), desk.end(1.0)
    runs = desk.begin(0.5)
    if verb == "end_promotion":
        desk.queue.promote(worse)
    if verb == "cancel":
        desk.queue.suspend(runs.job_id, runs.attempt)
    act: Callable[[], object] = {
        "promote": lambda: desk.queue.promote(worse),
        "end_promotion": lambda: desk.queue.end_promotion(worse),
        "finish": lambda: desk.queue.finish(runs.job_id, runs.attempt, DONE),
        "delete": lambda: desk.queue.delete(best, drops_champion=True),
        "cancel": lambda: desk.queue.cancel(runs.job_id),
    }[verb]
    before, champions = desk.file, desk.champions
    points = Failpoints(tmp_path / "points")
    monkeypatch.setattr(failpoints, "_folder", points.folder)
    points.arm(f"{'promote' if verb == 'end_promotion' else verb}.before_commit", "error:EIO")
    with pytest.raises(OSError, match="Input/output"):
        act()
    assert not points.is_armed(f"{'promote' if verb == 'end_promotion' else verb}.before_commit")
    assert desk.file == before
    assert desk.champions == champions
    act()
    assert desk.file != before, "else nothing was proved"


def test_the_worker_s_beat_brings_the_file_back_when_nobody_could(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worse, best = desk.end(2.0), desk.end(1.0)
    points = Failpoints(tmp_path / "points")
    monkeypatch.setattr(failpoints, "_folder", points.folder)
    points.arm("promote.before_commit", "error:EIO")

    def away(*_: object, **__: object) -> None:
        raise StorageUnavailable("It is away.")

    with monkeypatch.context() as still:
        still.setattr(Queue, "follow_champion", away)
        with pytest.raises(OSError, match="Input/output"):
            desk.queue.promote(worse)
    assert "follows its champion later: It is away." in caplog.text
    assert desk.paths.champion().read_text().startswith(worse)
    desk.queue.follow_champion()
    assert desk.file == best


def lose(desk: Desk, job_id: str) -> None:
    shutil.rmtree(desk.paths.job(job_id))


def test_a_dropped_champion_goes_when_the_next_has_no_files(desk: Desk) -> None:
    second, best = desk.end(2.0), desk.end(1.0)
    lose(desk, second)
    desk.queue.delete(best, drops_champion=True)
    assert desk.file is None
    assert desk.queue.champion_ids([A]) == {second}


def test_who_has_no_files_is_passed_over_for_the_file(desk: Desk) -> None:
    other, lost = desk.end(1.0, B), desk.end(1.0, A)
    lose(desk, lost)
    desk.paths.champion().unlink()
    sidecar(desk.paths.champion()).unlink()
    desk.queue.follow_champion()
    assert desk.file == other
    worse = desk.end(2.0, A)
    assert desk.file == worse
    assert desk.queue.champion_ids([A]) == {lost}, "the rows alone say who is the best"
    found, _ = desk.queue.champions(limit=9)
    assert not [one for one in found if one.is_behind_file], "it is of no champion"
    with pytest.raises(IsChampion):
        desk.queue.delete(worse)
    desk.queue.delete(worse, drops_champion=True)
    assert desk.file == other


def test_a_promoted_job_without_files_does_not_block_the_file(desk: Desk) -> None:
    best, chosen = desk.end(1.0), desk.end(2.0)
    desk.queue.promote(chosen)
    lose(desk, chosen)
    desk.queue.follow_champion()
    assert desk.file == chosen, "the only copy"
    for path in (desk.paths.champion(), sidecar(desk.paths.champion())):
        path.unlink()
    desk.queue.follow_champion()
    assert desk.file == best


def test_files_go_and_rows_are_locked_before_the_turn_is_taken(desk: Desk) -> None:
    if desk.queue.database.file is not None:
        pytest.skip("SQLite has one writer")
    best = desk.end(1.0)
    failing = desk.begin(0.5)
    desk.queue.submit(make_request(depends_on=[failing.job_id]))
    others: list[str] = []

    def taken() -> bool:
        with desk.queue.database.writing() as connection:
            free = connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({champion.CHAMPION_LOCK})")
            return not free.scalar_one()

    def note(_c: object, _cursor: object, text: str, *_more: object) -> None:
        others.append(text)

    sa.event.listen(desk.queue.database.write_engine, "before_cursor_execute", note)
    desk.queue.finish(failing.job_id, failing.attempt, Reason("internal"))
    sa.event.remove(desk.queue.database.write_engine, "before_cursor_execute", note)
    turn = next(number for number, text in enumerate(others) if "pg_advisory" in text)
    locks = [number for number, text in enumerate(others) if "FOR UPDATE" in text]
    assert max(locks) < turn, others
    desk.queue.promote(best)
    desk.queue.delete(failing.job_id, lambda _row: others.append(str(taken())))
    assert others[-1] == "False"
