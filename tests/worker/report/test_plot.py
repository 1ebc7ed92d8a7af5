"""The curve picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.worker.report.test_log import best, epoch
from worker.assignment import Point
from worker.report.plot import Plot, draw

PNG = b"\x89PNG\r\n\x1a\n"


def test_each_epoch_replaces_the_picture_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot = Plot(path, "a run")
    plot.write(epoch(1.3, best(None), 0))
    first = path.read_bytes()
    plot.write(epoch(1.2, best(1.3), 0))
    plot.end()
    assert first.startswith(PNG)
    assert path.read_bytes().startswith(PNG)
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.png"]


def point(val_loss: float | None, is_best: bool = False) -> Point:
    return Point(1, 1.4, val_loss, 0.4, 0.4, is_best)


@pytest.mark.parametrize(
    "curve",
    [[point(math.nan)], [point(None, True)], [point(1.3, True)], [point(1.3)] * 3],
    ids=["all_nan", "unknown_best", "one_point", "no_best"],
)
def test_sparse_and_broken_series_are_drawn(curve: list[Point]) -> None:
    figure = draw(curve, "x")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Loss", "Accuracy"]


def test_a_name_is_never_read_as_mathematics(tmp_path: Path) -> None:
    Plot(tmp_path / "run.png", r"$\frac{ 100% _a").write(epoch(1.3, best(None), 0))
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_the_best_epoch_carries_the_mark() -> None:
    legend = draw([point(1.3, True)], "x").axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "train",
        "validation",
        "best: epoch 1, 1.3000",
    ]


def test_a_run_that_goes_on_keeps_the_curve_of_its_earlier_attempts(tmp_path: Path) -> None:
    fresh, resumed = tmp_path / "fresh.png", tmp_path / "resumed.png"
    Plot(fresh, "x").write(epoch(1.2, best(None), 0))
    Plot(resumed, "x", [point(1.9)]).write(epoch(1.2, best(None), 0))
    assert fresh.read_bytes() != resumed.read_bytes()
