from __future__ import annotations

import random

import pytest

from app.errors import JobNotFound
from app.jobs import metrics
from app.jobs.metrics import CursorAhead, Metrics, Scope, since
from app.jobs.queue import Claim, Facts, Queue
from tests.app.api.service import batch, epoch, system
from tests.factories import OWNER, SLOT, make_request
from tests.postgres.engines import MakeQueue


@pytest.fixture
def queue(make_queue: MakeQueue) -> Queue:
    return make_queue()


@pytest.fixture
def claim(queue: Queue) -> Claim:
    queue.submit(make_request())
    claimed = queue.claim(OWNER, SLOT)
    assert claimed is not None
    return claimed


def read(
    queue: Queue,
    claim: Claim,
    *,
    after: int | None = None,
    scopes: tuple[Scope, ...] = metrics.SCOPES,
    max_points: int | None = None,
) -> Metrics:
    with queue.database.reading() as connection:
        return since(connection, claim.job_id, after=after, scopes=scopes, max_points=max_points)


def record(queue: Queue, claim: Claim, facts: Facts) -> None:
    queue.record(claim.job_id, claim.attempt, facts)


def test_an_unknown_job_is_named(queue: Queue) -> None:
    with queue.database.reading() as connection, pytest.raises(JobNotFound):
        since(connection, "x")


def test_a_cursor_ahead_of_the_job_is_named(queue: Queue, claim: Claim) -> None:
    with pytest.raises(CursorAhead):
        read(queue, claim, after=1000)


def test_classes_name_the_scores(queue: Queue, claim: Claim) -> None:
    record(queue, claim, Facts(epochs=[epoch(1)]))
    with queue.database.reading() as connection:
        found = since(connection, claim.job_id, classes=["down", "up"])
    assert list(found.epochs[0]["per_class"]) == ["down", "up"]


@pytest.mark.parametrize("max_points", [2, 3, 10, 99, 100])
def test_thinning_keeps_ends_and_extremes_and_its_promise(
    queue: Queue, claim: Claim, max_points: int
) -> None:
    losses = [random.Random(number).random() for number in range(500)]
    losses[123], losses[321] = 9.0, -9.0
    record(queue, claim, Facts(batches=[batch(1, number, loss) for number, loss in enumerate(losses)]))
    found = read(queue, claim, max_points=max_points).batches
    assert len(found["batch"]) <= max_points
    assert (found["batch"][0], found["batch"][-1]) == (0, 499)
    assert found["batch"] == sorted(found["batch"])
    assert found["loss"] == [losses[number] for number in found["batch"]]
    if max_points >= 10:
        assert {123, 321} <= set(found["batch"])


def test_thinning_leaves_what_is_few_and_survives_what_is_missing(queue: Queue, claim: Claim) -> None:
    record(queue, claim, Facts(batches=[batch(1, number, None) for number in range(50)]))
    assert len(read(queue, claim, max_points=50).batches["batch"]) == 50
    assert read(queue, claim, max_points=10).batches["batch"] == [0, 49]


def test_pages_cover_every_row_once(queue: Queue, claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PAGE_ROWS", {"epoch": 2, "batch": 7, "system": 5})
    for number in range(12):
        record(
            queue,
            claim,
            Facts(
                batches=[batch(number + 1, place) for place in range(3)],
                systems=[system(number)],
                epochs=[epoch(number + 1)],
            ),
        )
    batches: list[tuple[int, int]] = []
    epochs: list[int] = []
    seconds = 0
    after: int | None = None
    has_more = True
    while has_more:
        found = read(queue, claim, after=after)
        assert len(found.batches["batch"]) <= 7
        batches += zip(found.batches["epoch"], found.batches["batch"], strict=True)
        epochs += [row["epoch"] for row in found.epochs]
        seconds += len(found.systems["time"])
        after, has_more = found.seq, found.has_more
    assert batches == [(number + 1, place) for number in range(12) for place in range(3)]
    assert (epochs, seconds) == (list(range(1, 13)), 12)


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_full_page_with_nothing_behind_it_is_the_last(
    queue: Queue, claim: Claim, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    monkeypatch.setattr(metrics, "PAGE_ROWS", {"epoch": 2, "batch": 2, "system": 2})
    record(queue, claim, Facts(epochs=[epoch(number + 1) for number in range(epochs)]))
    record(queue, claim, Facts(events=[("warning", {})]))
    found = read(queue, claim)
    while found.has_more:
        found = read(queue, claim, after=found.seq)
        assert not found.is_empty
    assert found.epochs[-1]["epoch"] == epochs


def test_nothing_new_is_empty(queue: Queue, claim: Claim) -> None:
    record(queue, claim, Facts(systems=[system(0)]))
    found = read(queue, claim)
    assert not found.is_empty
    assert read(queue, claim, after=found.seq).is_empty
    assert read(queue, claim, scopes=("batch",)).is_empty
