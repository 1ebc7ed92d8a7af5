"""The scores of an epoch by class, beside those of always naming the most frequent class."""

from __future__ import annotations

from rich.table import Table

from app.cli import render
from app.client import Json
from app.jobs.scores import scores


def majority(epoch: Json) -> Json:
    """The scores of always naming the most frequent class of an epoch's validation."""
    support = [sum(row) for row in epoch["confusion"]]
    most = support.index(max(support))
    # The labels of each row all fall into that class's column.
    return scores([[s if k == most else 0 for k in range(len(support))] for s in support], _names(epoch))


def score_table(epoch: Json) -> Table:
    """Draw validation scores by class: the model's, then the baseline's."""
    names = _names(epoch)
    model, baseline = scores(epoch["confusion"], names), majority(epoch)
    most = max(names, key=lambda name: baseline["per_class"][name]["support"])

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"validation, epoch {epoch['epoch']}", min_width=20)
    for heading in ("precision", "recall", "F1", "support"):
        table.add_column(heading, justify="right")
    table.add_column(f"F1 of always {most}", justify="right", style="dim")
    for name in names:
        ours, theirs = model["per_class"][name], baseline["per_class"][name]
        table.add_row(
            name,
            *(f"{ours[score]:.3f}" for score in ("precision", "recall", "f1")),
            render.count(ours["support"]),
            f"{theirs['f1']:.3f}",
        )
    for name, score in (("macro-F1", "macro_f1"), ("accuracy", "accuracy")):
        table.add_row(name, "", "", f"{model[score]:.3f}", "", f"{baseline[score]:.3f}", style="bold")
    return table


def _names(epoch: Json) -> list[str]:
    return list(epoch["per_class"])
