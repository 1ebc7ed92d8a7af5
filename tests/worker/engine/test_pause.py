"""A runner told to pause leaves a resume checkpoint; the next attempt goes on from it to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.datasets.places import Sources
from app.jobs.config import JobRequest
from worker import runner
from worker.assignment import Assignment, Order, Resume
from worker.engine.events import (
    BatchDone,
    CheckpointSaved,
    Ended,
    EpochDone,
    Prepared,
    Resumed,
    Tick,
    decode,
)

torch.set_num_threads(1)

ROWS = 300
CONFIG = JobRequest.model_validate(
    {
        "data": {"path": "d.parquet", "window": 4, "horizon_s": 0},
        "model": {"name": "mlp", "d_model": 4, "hidden": 4, "dropout": 0.2},
        "training": {"epochs": 3, "threads": 1, "deterministic": True, "log_every": 5},
        "device": "cpu",
    }
)


@dataclass
class Orders:
    """What the supervisor asked for."""

    stop: Order | None = None


@pytest.fixture(autouse=True)
def _every_tick_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an order can come after any of them."""
    monkeypatch.setattr(runner, "TICK_EVERY_S", 0)


@pytest.fixture(autouse=True)
def _deterministic_off() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def attempt(
    folder: Path, number: int, resume: Resume | None = None, should_stop: Callable[[list[Any]], Any] = len
) -> list[Any]:
    """Run one attempt; pause when `should_stop` says a truthy order."""
    directory = folder / str(number)
    directory.mkdir()
    assignment = Assignment(
        job_id="01K00000000000000000000000",
        attempt=number,
        config=CONFIG.model_dump(mode="json"),
        resolved=None,
        data_fingerprint=None,
        sources=Sources(folder),
        plans=folder / ".plans",
        directory=directory,
        log=folder / "log.txt",
        plot=folder / "plot.png",
        stream_budget=2**26,
        vram_fraction=1.0,
        resume=resume,
    )
    events: list[Any] = []
    orders = Orders()

    def send(message: bytes) -> None:
        events.append(decode(message))
        if (order := should_stop(events)) in ("pause", "preempt", "cancel", "expire"):
            orders.stop = order

    runner.run(assignment, send, orders)  # type: ignore[arg-type]
    return events


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "timestamp": pa.array(np.arange(ROWS) * 10**9, pa.timestamp("ns")),
        "a": rng.normal(size=ROWS).astype(np.float32),
        "b": rng.normal(size=ROWS).astype(np.float32),
        "label": rng.integers(0, 4, ROWS),
    }
    pq.write_table(pa.table(columns), folder / "d.parquet")


def told(events: list[Any]) -> list[Any]:
    rows = [(e.epoch, e.batch, e.loss, e.lr, e.grad_norm) for e in events if isinstance(e, BatchDone)]
    epochs = [(e.epoch, e.train_loss, e.val_loss, e.confusion) for e in events if isinstance(e, EpochDone)]
    return [rows, epochs]


@pytest.mark.parametrize(
    ("order", "status", "reason"), [("cancel", "cancelled", "user"), ("expire", "failed", "max_runtime")]
)
def test_an_attempt_that_is_ended_reports_its_best_and_why_it_ended(
    order: Order, status: str, reason: str, tmp_path: Path
) -> None:
    write_data(tmp_path)
    events = attempt(
        tmp_path, 1, should_stop=lambda events: any(isinstance(e, EpochDone) for e in events) and order
    )
    assert (events[-1].reason, events[-1].stopped) == (reason, order)
    job = json.loads((tmp_path / "1" / "report.json").read_text())["job"]
    assert (job["status"], job["reason"]) == (status, reason)


@pytest.mark.parametrize("order", ["pause", "preempt"])
@pytest.mark.parametrize("ticks", [7, 81, 120], ids=str)
def test_a_paused_attempt_is_gone_on_with(
    order: Order, ticks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    whole = attempt(tmp_path, 1)
    first = attempt(
        tmp_path,
        2,
        should_stop=lambda events: sum(isinstance(e, Tick) for e in events) >= ticks and order,
    )
    ended, saved = first[-1], first[-2]
    assert isinstance(ended, Ended)
    assert ended.stopped == order
    assert isinstance(saved, CheckpointSaved)
    capsys.readouterr()
    rest = attempt(tmp_path, 3, Resume(tmp_path / "2" / saved.name, saved.sha256))
    assert isinstance(rest[-1], Ended)
    assert rest[-1].reason == "completed"
    assert isinstance(rest[rest.index(next(e for e in rest if isinstance(e, Prepared))) + 1], Resumed)
    assert [a + b for a, b in zip(told(first), told(rest), strict=True)] == told(whole)
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words[:3] == ["[JOB]", "[DATA]", "[MODEL]"]
    assert "[RESUME]" in words


def test_a_cancelled_attempt_leaves_at_once(tmp_path: Path) -> None:
    write_data(tmp_path)
    events = attempt(tmp_path, 1, should_stop=lambda events: isinstance(events[-1], Tick) and "cancel")
    assert isinstance(events[-2], Tick)
    assert events[-1].stopped == "cancel"


def test_a_corrupt_checkpoint_ends_the_attempt_with_its_name(tmp_path: Path) -> None:
    write_data(tmp_path)
    first = attempt(tmp_path, 1, should_stop=lambda events: isinstance(events[-1], Tick) and "pause")
    events = attempt(tmp_path, 2, Resume(tmp_path / "1" / first[-2].name, "0" * 64))
    assert events[-1].reason == "storage_error"
    assert first[-2].name in events[-1].message


def test_an_attempt_takes_the_plan_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path)
    cancel = lambda events: "cancel" if isinstance(events[-1], Prepared) else None  # noqa: E731
    attempt(tmp_path, 1, should_stop=cancel)
    assert len(list((tmp_path / ".plans").iterdir())) == 1
    monkeypatch.delattr("app.datasets.plans.plan_split")
    assert any(isinstance(event, Prepared) for event in attempt(tmp_path, 2, should_stop=cancel))
