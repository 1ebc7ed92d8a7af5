"""The demo's two recipes, and what came of them: a table beside what needs no model, an honest sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from app.cli import render
from app.client import Json
from app.jobs.scores import class_prior_baseline, majority_baseline, most_frequent, scores

# Every second window, so that the demo takes minutes on two cores; both jobs are judged on the same ones.
_DATA: Json = {"split": {"train": 0.7, "val": 0.15, "test": 0.15}, "stride": 2}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to train: the sections of a job's body, and a line on what it is."""

    name: str
    about: str
    sections: Json

    def body(self, dataset: str) -> Json:
        """Make the job that trains a dataset by it."""
        data = {"path": dataset, **_DATA, **self.sections.get("data", {})}
        return {"name": f"demo, {self.name}", **self.sections, "data": data}


KNOWN = Recipe(
    "known recipe",
    "the defaults, but for 3 epochs instead of 15 to keep this short",
    {"training": {"epochs": 3}},
)
# Chosen by the validation split of the real trades alone; docs/demo.md has the numbers.
TUNED = Recipe(
    "tuned recipe",
    "smaller, normalised, shuffled, milder class weights; chosen by validation, never by test",
    {
        "data": {"normalize": "standard", "shuffle": "block"},
        "model": {"name": "tcn", "d_model": 16, "dropout": 0.3},
        "loss": {"name": "cross_entropy", "class_weights": [1.0, 2.0, 2.0, 4.0]},
        "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "training": {"epochs": 8, "batch_size": 32, "accumulation_steps": 1},
    },
)

_SCORES = (
    ("macro-F1", "macro_f1"),
    ("MCC", "mcc"),
    ("balanced", "balanced_accuracy"),
    ("accuracy", "accuracy"),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What a job reached on a split. prior_loss: of the best constant probabilities under its own loss."""

    confusion: Sequence[Sequence[int]]
    loss: float
    prior_loss: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A recipe's job at its end, on both splits that can judge it."""

    recipe: str
    validation: Judged
    test: Judged


@dataclass(frozen=True, slots=True)
class Baselines:
    """What needs no model: the class most frequent in training, and answers as frequent as there."""

    classes: Sequence[str]
    train_counts: Sequence[int]

    @property
    def most(self) -> str:
        """The class most frequent in training."""
        return self.classes[most_frequent(self.train_counts)]

    def of(self, judged: Judged) -> dict[str, dict[str, Any]]:
        """Score both on the split that was judged, by name."""
        support = [sum(row) for row in judged.confusion]
        return {
            f"always {self.most}": majority_baseline(support, most_frequent(self.train_counts), self.classes),
            "class frequencies": class_prior_baseline(support, self.train_counts),
        }


def outcome(recipe: Recipe, job: Json, best_epoch: Json) -> Outcome:
    """Take a job's results apart. Its split has a test part."""
    best, test = job["best"], job["test"]
    return Outcome(
        recipe.name,
        Judged(best_epoch["confusion"], best["val_loss"], best["baseline_loss"]),
        Judged(test["confusion"], test["loss"], test["baseline_loss"]),
    )


def comparison(outcomes: Sequence[Outcome], baselines: Baselines) -> Table:
    """Draw all outcomes beside the baselines, validation first, then test."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", min_width=19, no_wrap=True)
    for heading in (*(heading for heading, _ in _SCORES), "loss", "constant"):
        table.add_column(heading, justify="right")
    for split in ("validation", "test"):
        judged = {one.recipe: one.validation if split == "validation" else one.test for one in outcomes}
        first = next(iter(judged.values()))
        windows = sum(map(sum, first.confusion))
        table.add_row(f"{split}, n = {windows:,}", style="bold")
        for name, of in judged.items():
            table.add_row(
                f"  {name}", *_cells(scores(of.confusion)), *map(render.loss, (of.loss, of.prior_loss))
            )
        for name, found in baselines.of(first).items():
            table.add_row(f"  {name}", *_cells(found), style="dim")
    return table


LOSS_NOTE = (
    "constant: the loss of the best constant probabilities, under the same class\n"
    "weights. The recipes' weights differ: compare a loss with that, not across."
)


def verdict(tuned: Outcome, baselines: Baselines) -> str:
    """Say in plain words whether a recipe beats what needs no model, on the test split."""
    of = tuned.test
    found = scores(of.confusion)
    to_beat = max(one["macro_f1"] for one in baselines.of(of).values())
    measured = [
        (f"macro-F1 {found['macro_f1']:.3f} against {to_beat:.3f}", found["macro_f1"] > to_beat),
        (f"MCC {found['mcc']:.3f} against 0", found["mcc"] > 0),
    ]
    if of.prior_loss is not None:
        words = f"loss {render.loss(of.loss)} against {render.loss(of.prior_loss)}"
        measured.append((words, of.loss < of.prior_loss))
    failed = [words for words, is_better in measured if not is_better]
    against = ", ".join(failed or [words for words, _ in measured])
    if failed:
        return (
            f"On test, the {tuned.recipe} does not beat what needs no model:\n{against}.\n"
            "Whatever it learned did not last: do not trust this model."
        )
    return (
        f"On test, the {tuned.recipe} beats what needs no model:\n{against}.\n"
        f"{_shift(of, baselines)}One split of a few days: a path to follow, not a trading edge."
    )


def _shift(judged: Judged, baselines: Baselines) -> str:
    """Say when the split judged has another class most often than training."""
    support = [sum(row) for row in judged.confusion]
    most = baselines.classes[most_frequent(support)]
    if most == baselines.most:
        return ""
    return (
        f"{most} is the most frequent class there, {baselines.most} in training: always {most}\n"
        f"would be right {render.percent(max(support) / sum(support), 0)} of the time,"
        " had anybody known.\n"
    )


def _cells(found: dict[str, Any]) -> list[str]:
    return [f"{found[name]:.3f}" for _, name in _SCORES]
