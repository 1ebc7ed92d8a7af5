"""A job's progress for a person: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from app.cli import render
from app.cli.follow import Story
from app.client import Json
from app.jobs.states import Status

_QUIET_S = 30.0  # between plain lines inside an epoch
_BAR_WIDTH = 36
_HEADINGS = ("epoch", "train loss", "val loss", "", "val acc", "macro-F1", "samples/s", "took")
_WIDTHS = (7, 10, 10, 1, 8, 8, 9, 8)


def show(stories: Iterable[Story], console: Console) -> Story:
    """Draw the stories as they come and return the last."""
    return _live(stories, console) if console.is_terminal else _plain(stories, console)


def _live(stories: Iterable[Story], console: Console) -> Story:
    printed: set[int] = set()
    spinner = Spinner("dots", style="cyan")
    last: Story | None = None
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        for last in stories:
            _print_epochs(last, printed, console)
            if not last.is_over:
                live.update(_board(last, spinner))
    assert last is not None
    return last


def _plain(stories: Iterable[Story], console: Console, clock: Callable[[], float] = time.monotonic) -> Story:
    printed: set[int] = set()
    said, spoken_at = "", clock()
    last: Story | None = None
    for last in stories:
        _print_epochs(last, printed, console)
        state = _state(last.job)
        if not last.is_over and (state != said or clock() - spoken_at >= _QUIET_S):
            console.print(_plain_line(last), soft_wrap=True)
            said, spoken_at = state, clock()
    assert last is not None
    return last


def _print_epochs(story: Story, printed: set[int], console: Console) -> None:
    """Print the epochs that are new; one that was measured again is printed again."""
    printed.intersection_update(story.epochs)
    for number in sorted(story.epochs.keys() - printed):
        if not printed:
            console.print(Text("  " + _columns(_HEADINGS), style="dim"), soft_wrap=True)
        row = story.epochs[number]
        console.print(
            Text("  " + _columns(_epoch_cells(story, row)), style="green" if row["best"] else ""),
            soft_wrap=True,
        )
        printed.add(number)


def _epoch_cells(story: Story, row: Json) -> tuple[str, ...]:
    epochs = (story.job.get("progress") or {}).get("epochs") or "?"
    return (
        f"{row['epoch']}/{epochs}",
        render.loss(row["train_loss"]),
        render.loss(row["val_loss"]),
        "★" if row["best"] else "",
        render.percent(row["val_accuracy"]),
        render.DASH if row.get("macro_f1") is None else f"{row['macro_f1']:.3f}",
        render.count(None if row["samples_per_s"] is None else round(row["samples_per_s"])),
        render.duration(row["duration_s"]),
    )


def _columns(cells: Iterable[str]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _board(story: Story, spinner: Spinner) -> RenderableType:
    job = story.job
    if job["status"] != Status.RUNNING:
        spinner.update(text=Text(_state(job)))
        return spinner
    progress = job["progress"]
    if not progress["epoch"]:
        spinner.update(text=Text(job["phase"] or "starting"))
        return spinner
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", width=7)
    table.add_column(width=_BAR_WIDTH)
    table.add_column(no_wrap=True)
    table.add_row(
        "  job",
        _bar(progress["percent"], 100),
        f"{progress['percent']:.0f} %   at most {render.duration(progress['eta_s'])} left"
        if progress["eta_s"] is not None
        else f"{progress['percent']:.0f} %",
    )
    table.add_row("  epoch", _bar(progress["batch"] or 0, progress["batches"] or 1), _epoch_text(job))
    return Group(table, Text("  " + " · ".join(_facts(story)), style="dim"))


def _bar(completed: float, total: float) -> ProgressBar:
    style = "cyan"
    return ProgressBar(
        total=total,
        completed=min(completed, total),
        width=_BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _epoch_text(job: Json) -> str:
    progress = job["progress"]
    parts = [f"{render.epoch(job)}"]
    if job["phase"] in ("validating", "saving"):
        parts.append(job["phase"])
    else:
        parts.append(f"batch {render.count(progress['batch'])} of {render.count(progress['batches'])}")
        if progress["samples_per_s"]:
            parts.append(f"{progress['samples_per_s']:,.0f} samples/s")
    return "   ".join(parts)


def _facts(story: Story) -> list[str]:
    facts = []
    if story.batch is not None:
        facts.append(f"train loss {render.loss(story.batch['loss'])}")
    if story.last_epoch is not None:
        facts.append(f"val loss {render.loss(story.last_epoch['val_loss'])}")
    best = story.job.get("best")
    if best:
        facts.append(f"best {render.loss(best['val_loss'])} ★ epoch {best['epoch']}")
    memory = story.memory or {}
    if memory.get("ram_used") is not None:
        facts.append(f"RAM {render.gigabytes(memory['ram_used'], memory.get('ram_total'))}")
    if memory.get("vram_used") is not None:
        facts.append(f"VRAM {render.gigabytes(memory['vram_used'], memory.get('vram_total'))}")
    return facts


def _plain_line(story: Story) -> str:
    job = story.job
    if job["status"] != Status.RUNNING or not job["progress"]["epoch"]:
        return "  " + _state(job)
    return "  " + "   ".join(
        [
            f"{job['phase']} {_epoch_text(job)}" if job["phase"] == "training" else _epoch_text(job),
            *_facts(story),
        ]
    )


def _state(job: Json) -> str:
    """What a plain reader is told of at once when it changes."""
    words = render.status(job)
    if job["status"] == Status.RUNNING:
        words = (job["phase"] or "starting") if not job["progress"]["epoch"] else "training"
    why = render.reason(job)
    return f"{words}: {why}" if why else words
