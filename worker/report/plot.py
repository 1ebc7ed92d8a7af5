"""The curve picture: loss and accuracy by epoch, the best epoch marked. Rewritten at each epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from app.failpoints import failpoint
from worker.assignment import Point
from worker.engine.events import EpochDone, Event

# Drawing takes a fifth of a second: epochs shorter than this share a picture.
MIN_S = 1.0
# With more epochs than this, dots would hide the line.
MAX_MARKED = 40
TRAIN, VAL, BEST = "#3b6fd4", "#e0572f", "#1f8a3b"
INK, MUTED, LINE = "#22252a", "#6b7280", "#e3e6ea"


class Plot:
    """A sink of events that keeps the picture at `path` current."""

    def __init__(self, path: Path, title: str, curve: Sequence[Point] = ()) -> None:
        """curve: the epochs that earlier attempts have done."""
        self._path = path
        self._title = title
        self._curve = list(curve)
        self._is_stale = False
        self._drawn_at = -MIN_S

    def write(self, event: Event) -> None:
        """Redraw when an epoch is done; all other events are nothing to see."""
        if isinstance(event, EpochDone):
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
            save(self._path, draw(self._curve, self._title))
            self._is_stale = False
            self._drawn_at = time.monotonic()


def draw(curve: Sequence[Point], title: str) -> Figure:
    """Draw loss and accuracy over the epochs; the last epoch that was best carries the mark."""
    figure = Figure(figsize=(10, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    losses, accuracies = figure.subplots(1, 2)
    numbers = [point.epoch for point in curve]
    _curves(losses, "Loss", numbers, [p.train_loss for p in curve], [p.val_loss for p in curve])
    _curves(
        accuracies, "Accuracy", numbers, [p.train_accuracy for p in curve], [p.val_accuracy for p in curve]
    )
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    best = next((point for point in reversed(curve) if point.is_best), None)
    if best is not None:
        _mark(losses, best.epoch, best.val_loss, "best: epoch {}, {:.4f}")
        _mark(accuracies, best.epoch, best.val_accuracy, "best: epoch {}, {:.1%}")
    for axes in (losses, accuracies):
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=1.6)
    # A name is the user's text: never mathtext.
    figure.suptitle(title, parse_math=False, fontsize=10, color=MUTED, x=0.01, ha="left")
    return figure


def save(path: Path, figure: Figure) -> None:
    """Write the picture beside `path` and rename: a reader sees the old one or the new one."""
    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, format="png", dpi=110)
    failpoint("plot.before_rename")
    os.replace(draft, path)


def _curves(
    axes: Axes, name: str, numbers: Sequence[int], train: Sequence[float | None], val: Sequence[float | None]
) -> None:
    # A single point needs a marker to be seen; a value that is not finite leaves a gap.
    for label, values, colour in (("train", train, TRAIN), ("validation", val, VAL)):
        shown = [math.nan if value is None or not math.isfinite(value) else value for value in values]
        marker = "o" if len(shown) <= MAX_MARKED else None
        axes.plot(numbers, shown, color=colour, label=label, linewidth=1.8, marker=marker, markersize=4)
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
