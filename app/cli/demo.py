"""`saimp demo`: the whole path on real market data, on roots of its own."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from app.cli import board, render
from app.cli.console import stdout, talk
from app.cli.failures import FAILED, INTERRUPTED, say_error, say_problem
from app.cli.follow import follow
from app.cli.processes import environment, python
from app.cli.recipes import (
    KNOWN,
    LOSS_NOTE,
    TUNED,
    Baselines,
    Outcome,
    Recipe,
    comparison,
    outcome,
    verdict,
)
from app.cli.service import Service, service
from app.cli.watch import say_ending
from app.client import Client, ClientError, Json, ServiceProblem
from app.jobs.files import BEST_NAME
from app.jobs.states import FINAL, Status

_LABEL_WIDTH = 12
_LAST_LINES = 15
_PATIENCE_S = 10.0
_CHECK_S = 120.0

# What a user does with the file: plain weights first, then the model they belong to.
_CHECK = """
import json, sys, torch
from worker.models import load, num_parameters
weights = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
model, sidecar = load(sys.argv[1])
model.load_state_dict(weights)
print(json.dumps({"model": sidecar["config"]["model"]["name"], "parameters": num_parameters(model)}))
"""


class DemoFailed(ClientError):
    """The demo could not do what it shows."""


def demo(
    root: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Fetch real trades, build a dataset, train two recipes over HTTP, compare them, use the checkpoint.

    Everything it makes stays below its own folder; a second run reuses the trades and the dataset.
    """
    began = time.monotonic()
    # A polite kill is a Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = stdout()
    console.print(Text("SAIMP Train demo", style="bold"), end="")
    console.print(f": real trades in, a verified checkpoint out. Everything stays in {root}/", soft_wrap=True)
    console.print()
    try:
        with service(root / "data", root / "logs") as running:
            _run(root, running, console)
    except KeyboardInterrupt:
        talk("interrupted; everything is stopped")
        raise typer.Exit(INTERRUPTED) from None
    except ServiceProblem as problem:
        say_problem(problem)
        raise typer.Exit(FAILED) from None
    except ClientError as error:
        say_error(str(error))
        raise typer.Exit(FAILED) from None
    _line(console, "took", f"{render.duration(time.monotonic() - began)}; the service is stopped")


def _run(root: Path, running: Service, console: Console) -> None:
    """The story: dataset, two jobs, their scores, a checkpoint in use. Raises ClientError."""
    dataset = _prepare(root, console)
    url = running.wait_for_url()
    with Client(url, patience_s=_PATIENCE_S) as client:
        _sweep(client)
        known_logs = _logs(root)
        plan = client.plan(KNOWN.body(dataset))
        _show_plan(plan, console)
        _line(console, "service", url)
        try:
            outcomes = [_train(client, recipe, dataset, console) for recipe in (KNOWN, TUNED)]
        except KeyboardInterrupt:
            _sweep(client)
            raise
        baselines = Baselines(plan["classes"], plan["splits"]["train"]["class_counts"])
        console.print()
        console.print(comparison([found for found, _ in outcomes], baselines))
        console.print(Text(LOSS_NOTE, style="dim"), soft_wrap=True)
        console.print()
        tuned, job = outcomes[-1]
        console.print(Text(verdict(tuned, baselines), style="bold"), soft_wrap=True)
        console.print()
        _use(root, client, job, dataset, known_logs, console)
    _line(console, "served at", url)


def _train(client: Client, recipe: Recipe, dataset: str, console: Console) -> tuple[Outcome, Json]:
    """Submit a recipe's job and show it to its end."""
    body = recipe.body(dataset)
    job = client.submit(body)
    console.print()
    console.print(Text.assemble((recipe.name, "bold"), f": {recipe.about}"), soft_wrap=True)
    _line(console, "POST /jobs", json.dumps(body))
    story = board.show(follow(client, job["id"]), console)
    say_ending(story.job, console)
    if story.job["status"] != Status.SUCCEEDED:
        raise DemoFailed(f"the job has {story.job['status']}; its log ends with\n{_end_of(client, job)}")
    best = story.best_epoch
    if best is None:
        raise DemoFailed("the job succeeded without a best epoch")
    return outcome(recipe, story.job, best), story.job


def _prepare(root: Path, console: Console) -> str:
    """Have the dataset ready and return its name below the data root."""
    # Only the demo needs Arrow, and the service must be started before Arrow starts its threads.
    from app.datasets.demo import prepare_dataset  # noqa: PLC0415

    def report(text: str) -> None:
        label, colon, rest = text.partition(": ")
        style = "bold yellow" if "SYNTHETIC" in text else None
        _line(console, label.lower() if colon else "", rest if colon else text, style)

    with console.status("preparing the dataset"):
        return prepare_dataset(root / "trades", root / "data", report=report).path.name


def _sweep(client: Client) -> None:
    """Cancel what an earlier demo left unfinished."""
    open_statuses = [status for status in Status if status not in FINAL]
    for job in client.jobs(status=open_statuses, limit=200)["data"]:
        client.cancel(job["id"])


def _show_plan(plan: Json, console: Console) -> None:
    """Say what each split holds: windows, until when, the balance of its classes."""
    for label, part in (("training", "train"), ("validation", "val"), ("test", "test")):
        found = plan["splits"][part]
        total = max(1, found["windows"])
        shares = ", ".join(
            f"{name} {count / total:.0%}"
            for name, count in zip(plan["classes"], found["class_counts"], strict=True)
        )
        until = f"{datetime.fromisoformat(found['end']):%Y-%m-%d %H:%M}" if found["end"] else render.DASH
        _line(console, label, f"{found['windows']:>5,} windows until {until}: {shares}")


def _end_of(client: Client, job: Json) -> str:
    text, _ = client.log(job["id"], tail=_LAST_LINES)
    return "\n".join(f"  {line}" for line in text.splitlines()) or "  nothing: it was not started"


def _use(
    root: Path, client: Client, job: Json, dataset: str, known_logs: set[Path], console: Console
) -> None:
    """Download the best checkpoint, verify it, load it, and let it classify the dataset."""
    path, check = _checkpoint(root, client, job["id"])
    _line(console, "checkpoint", f"{path}  {render.size(path.stat().st_size)}, downloaded over HTTP")
    _line(console, "", "sha256 verified; loaded with torch.load(weights_only=True)")
    _line(console, "", f"into its {check['model']} of {check['parameters']:,} parameters")
    arguments = [str(path), str(root / "data" / dataset), "--out", str(root / "predictions.parquet")]
    _line(console, "used", f"saimp predict {shlex.join(arguments)}")
    found = json.loads(_ran("-m", "app.cli.main", "predict", *arguments, what="saimp predict"))
    _line(console, "", f"a class and its probabilities for each of {found['windows']:,} windows")
    for log in sorted(_logs(root) - known_logs)[-1:]:
        _line(console, "curves", str(log.with_suffix(".png")))
        _line(console, "log", str(log))


def _checkpoint(root: Path, client: Client, job_id: str) -> tuple[Path, Json]:
    """Download the best checkpoint, and load it the way a user does."""
    path = client.pull(job_id, root / BEST_NAME)
    check: Json = json.loads(_ran("-c", _CHECK, str(path), what=f"loading {path}"))
    return path, check


def _ran(*arguments: str, what: str) -> str:
    """Run a program of ours and return what it printed. Raises DemoFailed with its complaint."""
    try:
        done = subprocess.run(
            python(*arguments), env=environment(), capture_output=True, text=True, timeout=_CHECK_S
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{what} took longer than {_CHECK_S:.0f} s") from None
    if done.returncode:
        raise DemoFailed(f"{what} failed:\n{done.stderr.strip()}")
    return done.stdout


def _logs(root: Path) -> set[Path]:
    return set((root / "logs").glob("train_run_*.txt"))


def _line(console: Console, label: str, text: str, style: str | None = None) -> None:
    line = Text.assemble((f"{label:<{_LABEL_WIDTH}}", "dim"), (text, style or ""))
    console.print(line, soft_wrap=True)
