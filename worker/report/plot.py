"""The curve picture: loss and accuracy by epoch, the best epoch marked. Rewritten at each epoch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from app.failpoints import failpoint
from worker.assignment import Point
from worker.engine.events import EpochDone, Event

# Drawing takes a fifth of a second: epochs shorter than this share a picture.
MIN_S = 1.0
TRAIN, VAL, BEST = "#5b8ff9", "#e8684a", "#2f9e44"


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
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    numbers = [point.epoch for point in curve]
    _curves(losses, "Loss", numbers, [p.train_loss for p in curve], [p.val_loss for p in curve])
    _curves(
        accuracies, "Accuracy", numbers, [p.train_accuracy for p in curve], [p.val_accuracy for p in curve]
    )
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    best = next((point for point in reversed(curve) if point.is_best), None)
    if best is not None and best.val_loss is not None and best.val_accuracy is not None:
        _mark(losses, best.epoch, best.val_loss, f"best: epoch {best.epoch}, {best.val_loss:.4f}")
        _mark(accuracies, best.epoch, best.val_accuracy, f"best: {best.val_accuracy:.1%}")
    for axes in (losses, accuracies):
        axes.legend(frameon=False, fontsize=9)
    # A name is the user's text: never mathtext.
    figure.suptitle(title, parse_math=False, fontsize=11)
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
        axes.plot(numbers, shown, marker="o", markersize=4, color=colour, label=label)
    axes.set_title(name)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, epoch: int, value: float, label: str) -> None:
    if math.isfinite(value):
        axes.plot(
            [epoch], [value], marker="*", markersize=15, color=BEST, linestyle="none", label=label, zorder=5
        )
