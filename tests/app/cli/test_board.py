"""Progress for a person: what a follower keeps, what a pipe gets, what a terminal gets."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from app.cli import board
from app.cli.follow import Story

Json = dict[str, Any]


def job(
    status: str = "running", epoch: int | None = 1, batch: int = 0, phase: str | None = "training"
) -> Json:
    return {
        "status": status,
        "phase": phase if status == "running" else None,
        "reason": {"code": "none", "message": None, "hint": None},
        "queue": {"position": 1 if status == "queued" else None},
        "progress": {
            "epoch": epoch,
            "epochs": 3,
            "batch": batch,
            "batches": 100,
            "percent": 10.0,
            "samples_per_s": 812.0,
            "eta_s": 83.0,
        },
        "best": None if epoch is None else {"epoch": 1, "val_loss": 1.25, "val_accuracy": 0.5},
    }


def row(number: int, is_best: bool = True) -> Json:
    return {
        "epoch": number,
        "train_loss": 1.5,
        "val_loss": 1.25,
        "val_accuracy": 0.5,
        "macro_f1": 0.4,
        "samples_per_s": 812.4,
        "duration_s": 9.1,
        "best": is_best,
    }


def page(*epochs: Json, rewinds: tuple[Json, ...] = (), loss: float | None = None) -> Json:
    batches = {} if loss is None else {"time": ["t"], "loss": [loss]}
    system = {"time": ["t"], "ram_used": [2**30], "ram_total": [2**34], "vram_used": [None]}
    return {"epochs": list(epochs), "batches": batches, "system": system, "rewinds": list(rewinds)}


def told(*steps: tuple[Json, Json], terminal: bool = False) -> str:
    """What is written while the story goes through these steps."""
    out = io.StringIO()
    console = Console(
        file=out, width=100, force_terminal=terminal, color_system=None, highlight=False, markup=False
    )

    def stories() -> Any:
        story = Story(job("queued", None))
        yield story
        for now, news in steps:
            story.take(now, news)
            yield story

    board.show(stories(), console)
    return out.getvalue()


def test_a_pipe_gets_each_epoch_once() -> None:
    text = told(
        (job(epoch=None, phase="preparing"), page()),
        (job(), page(loss=1.6)),
        (job(), page(row(1))),
        (job(epoch=2), page()),
        (job(epoch=2), page()),
        (job("succeeded", 2), page(row(2, is_best=False))),
    )
    assert text.splitlines() == [
        "  queued #1",
        "  preparing",
        "  training 1/3   batch 0 of 100   812 samples/s   train loss 1.6000   best 1.2500 ★ epoch 1   "
        "RAM 1.0 GB / 16.0 GB",
        "    epoch  train loss    val loss      val acc  macro-F1  samples/s      took",
        "      1/3      1.5000      1.2500  ★    50.0 %     0.400        812     9.1 s",
        "      2/3      1.5000      1.2500       50.0 %     0.400        812     9.1 s",
    ]


def test_a_pipe_gets_no_control_characters() -> None:
    text = told((job(), page(row(1), loss=1.0)), (job("failed"), page()))
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_terminal_gets_bars() -> None:
    text = told((job(batch=50), page(row(1), loss=1.5)), (job("succeeded"), page()), terminal=True)
    assert "━" in text
    assert "at most 1 min 23 s left" in text
    assert "batch 50 of 100" in text
    assert "train loss 1.5000 · val loss 1.2500 · best 1.2500 ★ epoch 1 · RAM 1.0 GB / 16.0 GB" in text


def test_a_rewind_drops_what_lies_beyond() -> None:
    story = Story(job())
    story.take(job(), page(row(1), row(2), row(3), loss=1.0))
    story.take(job(), page(rewinds=({"epoch": 2, "batch": 7},)))
    assert list(story.epochs) == [1]
    assert story.batch is None
    story.take(job(), page(row(2), rewinds=({"epoch": 1, "batch": 0},)))
    assert list(story.epochs) == [2]


def test_an_epoch_measured_again_is_printed_again() -> None:
    text = told(
        (job(), page(row(1), row(2))),
        (job(), page(rewinds=({"epoch": 2, "batch": 0},))),
        (job(), page(row(2))),
        (job("succeeded"), page()),
    )
    assert [line.split()[0] for line in text.splitlines() if "/3  " in line and "9.1 s" in line] == [
        "1/3",
        "2/3",
        "2/3",
    ]
