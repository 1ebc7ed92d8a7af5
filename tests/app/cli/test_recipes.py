"""The demo's table and its sentence: right numbers, and no boast."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from app.cli.recipes import KNOWN, TUNED, Baselines, Judged, Outcome, comparison, verdict
from app.jobs.config import JobRequest

BASELINES = Baselines(["calm", "down", "up"], [80, 10, 10])
CONSTANT = [[50, 0, 0], [30, 0, 0], [20, 0, 0]]
GOOD = [[40, 5, 5], [5, 20, 5], [5, 5, 10]]
SHIFTED = [[15, 3, 2], [10, 40, 10], [5, 5, 10]]


def outcome(
    confusion: list[list[int]],
    *,
    loss: float = 1.0,
    prior_loss: float | None = 1.2,
    recipe: str = "tuned recipe",
) -> Outcome:
    judged = Judged(confusion, loss, prior_loss)
    return Outcome(recipe, Judged(GOOD, 0.9, 1.2), judged)


def drawn(*outcomes: Outcome) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(comparison(outcomes, BASELINES))
    return [line.split() for line in out.getvalue().splitlines()]


def test_both_recipes_are_jobs_with_a_test_split_and_the_same_windows() -> None:
    data = [JobRequest.model_validate(one.body("demo")).data for one in (KNOWN, TUNED)]
    assert data[0].split.model_dump() == {"train": 0.7, "val": 0.15, "test": 0.15}
    same = ("split", "window", "stride", "embargo_s", "max_gap_s", "non_finite")
    assert data[0].model_dump(include=set(same)) == data[1].model_dump(include=set(same))


def test_the_known_recipe_is_the_defaults_in_fewer_epochs() -> None:
    given, default = (
        JobRequest.model_validate(body).model_dump() for body in (KNOWN.body("x"), {"data": {"path": "x"}})
    )
    for section in ("model", "loss", "optimizer", "schedule", "early_stopping", "precision"):
        assert given[section] == default[section]
    assert {**given["training"], "epochs": 15} == default["training"]


def test_the_table_shows_both_recipes_and_both_baselines_on_both_splits() -> None:
    lines = drawn(outcome(CONSTANT, loss=1.5, recipe="known recipe"), outcome(GOOD))
    assert lines[0] == ["macro-F1", "MCC", "balanced", "accuracy", "loss", "constant"]
    assert [line[:2] for line in lines[1:]] == [
        ["validation,", "n"],
        ["known", "recipe"],
        ["tuned", "recipe"],
        ["always", "calm"],
        ["class", "frequencies"],
        ["test,", "n"],
        ["known", "recipe"],
        ["tuned", "recipe"],
        ["always", "calm"],
        ["class", "frequencies"],
    ]
    test = lines[7:]
    # Always "calm": F1 = 2 x 50 / (100 + 50), over three classes.
    assert test[0][2:] == ["0.222", "0.000", "0.333", "0.500", "1.5000", "1.2000"]
    assert test[2][2:] == ["0.222", "0.000", "0.333", "0.500"]
    assert test[1][5:] == ["0.700", "1.0000", "1.2000"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80, color_system=None).print(comparison([outcome(GOOD)], BASELINES))
    assert len(out.getvalue().splitlines()) == 9


def test_what_beats_the_baselines_on_test_is_said_without_a_boast() -> None:
    said = verdict(outcome(GOOD), BASELINES)
    assert "beats what needs no model" in said
    assert "not a trading edge" in said
    assert "most frequent class there" not in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_test_split_of_another_majority_is_said() -> None:
    said = verdict(outcome(SHIFTED), BASELINES)
    assert "down is the most frequent class there, calm in training" in said
    assert "60 % of the time" in said


@pytest.mark.parametrize(
    ("confusion", "loss", "word"),
    [
        (CONSTANT, 1.0, "macro-F1 0.222"),
        (CONSTANT, 1.0, "MCC 0.000 against 0"),
        (GOOD, 1.3, "loss 1.3000 against 1.2000"),
    ],
    ids=["macro-F1", "MCC", "loss"],
)
def test_what_does_not_beat_the_baselines_on_test_is_said_in_plain_words(
    confusion: list[list[int]], loss: float, word: str
) -> None:
    said = verdict(outcome(confusion, loss=loss), BASELINES)
    assert "does not beat what needs no model" in said
    assert word in said
    assert "do not trust this model" in said
    assert " beats " not in said


def test_a_loss_without_a_constant_to_compare_with_is_left_out() -> None:
    assert "beats" in verdict(outcome(GOOD, loss=9.9, prior_loss=None), BASELINES)
