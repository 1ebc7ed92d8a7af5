"""The curve picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tests.worker.report.test_log import best, epoch
from tests.worker.report.test_model_card import prepared
from worker.assignment import Point
from worker.report import plot as module
from worker.report.plot import Majority, Plot, draw, title_of

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


def line(axes: Axes, label: str) -> Line2D:
    return next(found for found in axes.get_lines() if str(found.get_label()).startswith(label))


@pytest.mark.parametrize("num_epochs", [1, 3, 60])
def test_train_and_validation_are_told_apart_without_colour(num_epochs: int) -> None:
    curve = [Point(number, 1.4, 1.3, 0.4, 0.5, False) for number in range(num_epochs)]
    for axes in draw(curve, "x").axes:
        train, validation = line(axes, "train"), line(axes, "validation")
        assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
        assert train.get_markerfacecolor() == train.get_color()
        assert validation.get_markerfacecolor() == "white"


def test_accuracy_is_seen_beside_that_of_always_naming_one_class() -> None:
    losses, accuracies = draw([point(1.3)], "x", Majority("$flat_a$", 0.625)).axes
    always = line(accuracies, "always")
    assert always.get_ydata() == [0.625, 0.625]
    assert always.get_label() == "always $flat_a$, 62.5%"
    assert always.get_linestyle() == "-."
    assert not any(str(found.get_label()).startswith("always") for found in losses.get_lines())


def test_a_run_is_drawn_with_its_data_its_dates_and_the_share_of_the_trained_majority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(module, "save", lambda _path, figure: figures.append(figure))
    plot = Plot(tmp_path / "run.png", "a run", dataset="months/" + "x" * 100)
    plot.write(prepared())
    plot.write(epoch(1.3, best(None), 0))  # as many labels of each class, and train has more of the first
    title = figures[0].get_suptitle()
    assert title.startswith("a run\nmonths/xxx")
    assert len(title) < 150
    assert title.endswith("x… · train 2026-01-01 to 2026-01-02 · validation 2026-01-01 to 2026-01-02")
    assert line(figures[0].axes[1], "always").get_label() == "always flat, 50.0%"


def test_a_title_is_a_line_however_long_the_name() -> None:
    assert title_of(None, "JOB") == "JOB"
    assert title_of("x" * 120, "JOB") == "x" * 35 + "… · JOB"


def test_names_in_any_script_are_drawn_without_a_word(tmp_path: Path) -> None:
    Plot(tmp_path / "run.png", "漢字 \U0001f600").write(epoch(1.3, best(None), 0))
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_a_run_that_goes_on_keeps_the_curve_of_its_earlier_attempts(tmp_path: Path) -> None:
    fresh, resumed = tmp_path / "fresh.png", tmp_path / "resumed.png"
    Plot(fresh, "x").write(epoch(1.2, best(None), 0))
    Plot(resumed, "x", [point(1.9)]).write(epoch(1.2, best(None), 0))
    assert fresh.read_bytes() != resumed.read_bytes()
