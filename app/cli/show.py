"""`saimp show`: one job."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Console
from rich.text import Text

from app.cli import render
from app.cli.connection import connect
from app.cli.console import JobArgument, Output, OutputOption, put_json, stdout
from app.cli.scores import score_table
from app.client import Json
from app.text import escaped


def show(job: JobArgument, output: OutputOption = Output.text) -> None:
    """Show one job: status, progress, best epoch and its scores by class."""
    with connect() as client:
        found = client.job(client.resolve(job))
        if output is Output.json:
            put_json(found)
            return
        epochs = client.metrics(found["id"], scope=("epoch",))["epochs"] if found["best"] else []
        url = client.url
    console = stdout()
    for label, value in _facts(found, url):
        console.print(Text.assemble((f"{label:<11}", "dim"), escaped(value)), soft_wrap=True)
    _print_best(found, epochs, console)


def _facts(job: Json, url: str) -> Iterator[tuple[str, str]]:
    yield "id", job["id"]
    if job["name"]:
        yield "name", job["name"]
    yield "status", render.status(job) + (f", {job['phase']}" if job["phase"] else "")
    if why := render.reason(job):
        yield "reason", f"{why} [{job['reason']['code']}]"
    if hint := (job["reason"] or {}).get("hint"):
        yield "", hint
    if job["tags"]:
        yield "tags", ", ".join(job["tags"])
    if config := job["config"]:  # else its row is damaged, as a warning says
        yield "data", config["data"]["path"]
        yield "model", config["model"]["name"]
    if job["progress"]["epoch"]:
        yield "epoch", f"{render.epoch(job)}, {job['progress']['percent']:.0f} %"
    if job["best"]:
        best = job["best"]
        scored = _scored(best, best["val_loss"], best["val_accuracy"])
        yield "best", f"epoch {best['epoch']}: val {scored}"
    if job["test"]:
        yield "test", _scored(job["test"], job["test"]["loss"], job["test"]["accuracy"])
    if job.get("champion"):
        yield "champion", "of the jobs comparable with it"
    if job["attempt"] > 1:
        yield "attempt", str(job["attempt"])
    yield "created", _moment(job["created_at"])
    if job["started_at"]:
        yield "started", _moment(job["started_at"])
        yield "took", render.duration(render.took(job))
    for warning in job.get("warnings") or ():
        yield "warning", warning["message"]
    yield "address", f"{url}{job['links']['self']}"


def _scored(of: Json, loss: float | None, accuracy: float | None) -> str:
    """Say how good a model is, beside what needs none."""
    said = f"loss {render.loss(loss)}, accuracy {render.percent(accuracy)}"
    if of.get("macro_f1") is None:
        return said
    beside = (
        ""
        if of.get("baseline_macro_f1") is None
        else f"always {of['baseline_class']} {of['baseline_macro_f1']:.3f}"
    )
    return f"{said}, macro-F1 {of['macro_f1']:.3f}" + (f" ({beside})" if beside else "")


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M:%S}"


def _print_best(job: Json, epochs: list[Json], console: Console) -> None:
    rows = [row for row in epochs if row["epoch"] == job["best"]["epoch"]] if job["best"] else []
    if rows:
        console.print()
        console.print(score_table(rows[0], job["best"]["baseline_class"]))
