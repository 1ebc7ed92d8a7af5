"""The curve picture: loss and accuracy by epoch, the best epoch marked. Rewritten at each epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from worker.engine.events import EpochDone, Event

TRAIN, VAL, BEST = "#5b8ff9", "#e8684a", "#2f9e44"


class Plot:
    """A sink of events that keeps the picture at `path` current."""

    def __init__(self, path: Path, title: str) -> None:
        self._path = path
        self._title = title
        self._epochs: list[EpochDone] = []

    def write(self, event: Event) -> None:
        """Redraw when an epoch is done; all other events are nothing to see."""
        if isinstance(event, EpochDone):
            self._epochs.append(event)
            save(self._path, draw(self._epochs, self._title))


def draw(epochs: Sequence[EpochDone], title: str) -> Figure:
    """Draw loss and accuracy over the epochs; the last epoch that was best carries the mark."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    numbers = [done.epoch for done in epochs]
    best = next((done for done in reversed(epochs) if done.best is not None), None)
    _curves(losses, "Loss", numbers, [done.train_loss for done in epochs], [done.val_loss for done in epochs])
    _curves(
        accuracies,
        "Accuracy",
        numbers,
        [done.train_accuracy for done in epochs],
        [done.val_accuracy for done in epochs],
    )
    accuracies.yaxis.set_major_formatter(PercentFormatter(1.0))
    if best is not None:
        label = f"best: epoch {best.epoch}, {best.val_loss:.4f}"
        _mark(losses, best.epoch, best.val_loss, label)
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
    os.replace(draft, path)


def _curves(
    axes: Axes, name: str, numbers: Sequence[int], train: Sequence[float], val: Sequence[float]
) -> None:
    # A single point needs a marker to be seen; a value that is not finite leaves a gap.
    for label, values, colour in (("train", train, TRAIN), ("validation", val, VAL)):
        shown = [value if math.isfinite(value) else math.nan for value in values]
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
