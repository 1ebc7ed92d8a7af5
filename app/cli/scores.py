"""The scores of an epoch by class, beside those of always naming the class most frequent in training."""

from __future__ import annotations

from rich.table import Table

from app.cli import render
from app.client import Json
from app.jobs.scores import majority_baseline, scores


def score_table(epoch: Json, baseline_class: str | None) -> Table:
    """Draw validation scores by class: the model's, then those of always naming one class.

    baseline_class: the class most frequent in training, as the job's `best` names it; null = not known.
    """
    names = _names(epoch)
    model = scores(epoch["confusion"], names)
    baseline = None
    if baseline_class in names:
        support = [sum(row) for row in epoch["confusion"]]
        baseline = majority_baseline(support, names.index(baseline_class), names)

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"validation, epoch {epoch['epoch']}", min_width=20)
    for heading in ("precision", "recall", "F1", "support"):
        table.add_column(heading, justify="right")
    if baseline is not None:
        table.add_column(f"F1 of always {baseline_class}", justify="right", style="dim")
    for name in names:
        ours = model["per_class"][name]
        table.add_row(
            name,
            *(f"{ours[score]:.3f}" for score in ("precision", "recall", "f1")),
            render.count(ours["support"]),
            *([f"{baseline['per_class'][name]['f1']:.3f}"] if baseline else []),
        )
    for name, score in (("macro-F1", "macro_f1"), ("accuracy", "accuracy")):
        theirs = [f"{baseline[score]:.3f}"] if baseline else []
        table.add_row(name, "", "", f"{model[score]:.3f}", "", *theirs, style="bold")
    return table


def _names(epoch: Json) -> list[str]:
    return list(epoch["per_class"])
