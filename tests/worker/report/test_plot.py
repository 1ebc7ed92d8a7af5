"""The curve picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.worker.report.test_log import best, epoch
from worker.engine.events import EpochDone
from worker.report.plot import Plot, draw

PNG = b"\x89PNG\r\n\x1a\n"


def test_each_epoch_replaces_the_picture_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot = Plot(path, "a run")
    plot.write(epoch(1.3, best(None), 0))
    first = path.read_bytes()
    plot.write(epoch(1.2, best(1.3), 0))
    assert first.startswith(PNG)
    assert path.read_bytes().startswith(PNG)
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.png"]


@pytest.mark.parametrize(
    "epochs",
    [[epoch(math.nan, None, 1)], [epoch(1.3, best(None), 0)], [epoch(1.3, None, 0)] * 3],
    ids=["all_nan", "one_point", "no_best"],
)
def test_sparse_and_broken_series_are_drawn(epochs: list[EpochDone]) -> None:
    figure = draw(epochs, "x")
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Accuracy"]


def test_a_name_is_never_read_as_mathematics(tmp_path: Path) -> None:
    Plot(tmp_path / "run.png", r"$\frac{ 100% _a").write(epoch(1.3, best(None), 0))
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_the_best_epoch_carries_the_mark() -> None:
    legend = draw([epoch(1.3, best(None), 0)], "x").axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "train",
        "validation",
        "best: epoch 1, 1.3000",
    ]
