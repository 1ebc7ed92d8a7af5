"""The curve picture: loss and accuracy by epoch, the best epoch marked. Rewritten at each epoch."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from app.errors import shown
from app.failpoints import failpoint
from app.jobs.scores import majority_baseline, most_frequent
from worker.assignment import Point
from worker.engine.events import EpochDone, Event, Prepared

# Drawing takes a fifth of a second: epochs shorter than this share a picture.
MIN_S = 1.0
# With more epochs than this, dots would hide the line.
MAX_MARKED = 40
TRAIN, VAL, BEST = "#3b6fd4", "#e0572f", "#1f8a3b"
# Told apart by more than their colour: pictures are printed in grey.
TRAIN_STYLE: dict[str, Any] = {"color": TRAIN, "linestyle": "-", "markerfacecolor": TRAIN}
VAL_STYLE: dict[str, Any] = {"color": VAL, "linestyle": "--", "markerfacecolor": "white"}
MAX_NAME = 36  # characters of a name in the title
INK, MUTED, LINE = "#22252a", "#6b7280", "#e3e6ea"


@dataclass(frozen=True, slots=True)
class Majority:
    """Always naming the class that is most frequent in training: what accuracy costs nothing."""

    name: str
    accuracy: float


class Plot:
    """A sink of events that keeps the picture at `path` current."""

    def __init__(self, path: Path, title: str, curve: Sequence[Point] = (), *, dataset: str = "") -> None:
        """curve: the epochs that earlier attempts have done; dataset: its path, for the title."""
        self._path = path
        self._title = title
        self._dataset = dataset
        self._curve = list(curve)
        self._prepared: Prepared | None = None
        self._majority: Majority | None = None
        self._is_stale = False
        self._drawn_at = -MIN_S

    def write(self, event: Event) -> None:
        """Redraw when an epoch is done; of all other events only the plan is of use."""
        if isinstance(event, Prepared):
            self._prepared = event
            self._title = f"{self._title}\n{_extent(self._dataset, event.plan['splits'])}"
        if isinstance(event, EpochDone):
            if self._prepared is not None:
                self._majority = _majority(event, self._prepared)
            self._curve.append(
                Point(
                    event.epoch,
                    event.train_loss,
                    event.val_loss,
                    event.train_accuracy,
                    event.val_accuracy,
                    is_best=event.best is not None,
                )
            )
            self._is_stale = True
            if time.monotonic() - self._drawn_at >= MIN_S:
                self.end()

    def end(self) -> None:
        """Draw what has not been drawn yet."""
        if self._is_stale:
            save(self._path, draw(self._curve, self._title, self._majority))
            self._is_stale = False
            self._drawn_at = time.monotonic()


def draw(curve: Sequence[Point], title: str, majority: Majority | None = None) -> Figure:
    """Draw loss and accuracy over the epochs; the last epoch that was best carries the mark.

    majority: drawn as a line that accuracy must be above.
    """
    figure = Figure(figsize=(10, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    losses, accuracies = figure.subplots(1, 2)
    numbers = [point.epoch for point in curve]
    _curves(losses, "Loss", numbers, [p.train_loss for p in curve], [p.val_loss for p in curve])
    _curves(
        accuracies, "Accuracy", numbers, [p.train_accuracy for p in curve], [p.val_accuracy for p in curve]
    )
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    if majority is not None:
        label = f"always {shown(majority.name, 24)}, {majority.accuracy:.1%}"
        accuracies.axhline(majority.accuracy, color=MUTED, linewidth=1.2, linestyle="-.", label=label)
    best = next((point for point in reversed(curve) if point.is_best), None)
    if best is not None:
        _mark(losses, best.epoch, best.val_loss, "best: epoch {}, {:.4f}")
        _mark(accuracies, best.epoch, best.val_accuracy, "best: epoch {}, {:.1%}")
    for axes in (losses, accuracies):
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=2.6)
        # A name is the user's text: never mathtext.
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.suptitle(title, parse_math=False, fontsize=10, color=MUTED, x=0.01, ha="left")
    return figure


def save(path: Path, figure: Figure) -> None:
    """Write the picture beside `path` and rename: a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.tmp")
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(draft, format="png", dpi=110)
    failpoint("plot.before_rename")
    os.replace(draft, path)


def title_of(name: str | None, job_id: str) -> str:
    """Name a run in a line, however long its name is."""
    return f"{shown(name, MAX_NAME)} · {job_id}" if name else job_id


def _extent(dataset: str, splits: dict[str, Any]) -> str:
    dates = [
        f"{label} {part['start'][:10]} to {part['end'][:10]}"
        for label, part in (("train", splits["train"]), ("validation", splits["val"]))
        if part["start"] is not None
    ]
    return " · ".join([shown(dataset, MAX_NAME), *dates])


def _majority(done: EpochDone, prepared: Prepared) -> Majority:
    support = [sum(row) for row in done.confusion]
    counts = prepared.plan["splits"]["train"]["class_counts"]
    found = majority_baseline(support, most_frequent(counts), prepared.resolved["classes"])
    return Majority(found["class"], found["accuracy"])


def _curves(
    axes: Axes, name: str, numbers: Sequence[int], train: Sequence[float | None], val: Sequence[float | None]
) -> None:
    # A single point needs a marker to be seen; a value that is not finite leaves a gap.
    for label, values, style in (("train", train, TRAIN_STYLE), ("validation", val, VAL_STYLE)):
        finite = [math.nan if value is None or not math.isfinite(value) else value for value in values]
        marker = "o" if len(finite) <= MAX_MARKED else None
        axes.plot(numbers, finite, label=label, linewidth=1.8, marker=marker, markersize=5, **style)
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.set_xlabel("epoch", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.1)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


def _mark(axes: Axes, epoch: int, value: float | None, label: str) -> None:
    if value is None or not math.isfinite(value):
        return
    axes.axvline(epoch, color=BEST, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    axes.plot(
        [epoch],
        [value],
        color=BEST,
        label=label.format(epoch, value),
        linestyle="none",
        marker="*",
        markersize=15,
        markeredgecolor="white",
        zorder=5,
    )
