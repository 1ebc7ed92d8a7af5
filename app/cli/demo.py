"""`saimp demo`: the whole path on real market data, on roots of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from app.cli import board, render
from app.cli.console import stdout, talk
from app.cli.failures import FAILED, INTERRUPTED, say_error, say_problem
from app.cli.follow import Story, follow
from app.cli.processes import environment, python
from app.cli.scores import score_table
from app.cli.service import Service, service
from app.cli.watch import say_ending
from app.client import Client, ClientError, Json, ServiceProblem
from app.jobs.files import BEST_NAME
from app.jobs.states import FINAL, Status

_LABEL_WIDTH = 12
_LAST_LINES = 15
_PATIENCE_S = 10.0
_CHECK_S = 120.0
_LABELS = {"Classes in training": "training", "Classes in validation": "validation"}

# What a user does with the file: plain weights first, then the model they belong to.
_CHECK = """
import json, sys, torch
from worker.models import load, num_parameters
weights = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
model, sidecar = load(sys.argv[1])
model.load_state_dict(weights)
print(json.dumps({"model": type(model).__name__, "parameters": num_parameters(model)}))
"""


class DemoFailed(ClientError):
    """The demo could not do what it shows."""


def demo(
    root: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
) -> None:
    """Fetch real trades, build a dataset, train over HTTP, download and verify the best checkpoint.

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
    """The story: dataset, job, progress, checkpoint, scores. Raises ClientError for what goes wrong."""
    dataset = _prepare(root, console)
    url = running.wait_for_url()
    _line(console, "service", url)
    with Client(url, patience_s=_PATIENCE_S) as client:
        _sweep(client)
        known_logs = _logs(root)
        body = {"data": {"path": dataset}, "name": "demo"}  # the defaults are the known recipe
        plan = client.plan(body)
        job = client.submit(body)
        _line(console, "job", f"POST /jobs {json.dumps(body)}")
        _line(console, "", f"{job['id']}, {_windows(plan)}")
        console.print()
        try:
            story = board.show(follow(client, job["id"]), console)
        except KeyboardInterrupt:
            client.cancel(job["id"])
            raise
        console.print()
        say_ending(story.job, console)
        if story.job["status"] != Status.SUCCEEDED:
            raise DemoFailed(f"the job has {story.job['status']}; its log ends with\n{_end_of(client, job)}")
        console.print()
        _show_results(root, client, story, known_logs, console)
    _line(console, "served at", url)


def _prepare(root: Path, console: Console) -> str:
    """Have the dataset ready and return its name below the data root."""
    # Only the demo needs Arrow, and the service must be started before Arrow starts its threads.
    from app.datasets.demo import prepare_dataset  # noqa: PLC0415

    def report(text: str) -> None:
        label, colon, rest = text.partition(": ")
        style = "bold yellow" if "SYNTHETIC" in text else None
        _line(console, _LABELS.get(label, label.lower()) if colon else "", rest if colon else text, style)

    with console.status("preparing the dataset"):
        return prepare_dataset(root / "trades", root / "data", report=report).path.name


def _sweep(client: Client) -> None:
    """Cancel what an earlier demo left unfinished."""
    open_statuses = [status for status in Status if status not in FINAL]
    for job in client.jobs(status=open_statuses, limit=200)["data"]:
        client.cancel(job["id"])


def _windows(plan: Json) -> str:
    if plan["splits"] is None:
        return "accepted"
    train, val = plan["splits"]["train"], plan["splits"]["val"]
    return (
        f"{train['windows']:,} training and {val['windows']:,} validation windows of "
        f"{plan['config']['data']['window']} rows, in time order"
    )


def _end_of(client: Client, job: Json) -> str:
    text, _ = client.log(job["id"], tail=_LAST_LINES)
    return "\n".join(f"  {line}" for line in text.splitlines()) or "  nothing: it was not started"


def _show_results(root: Path, client: Client, story: Story, known_logs: set[Path], console: Console) -> None:
    best = story.best_epoch
    if best is None:
        raise DemoFailed("the job succeeded without a best epoch")
    console.print(score_table(best, story.job["best"]["baseline_class"]))
    console.print(Text(_verdict(story.job["best"]), style="dim"))
    console.print()
    path, check = _checkpoint(root, client, story.job["id"])
    _line(console, "checkpoint", f"{path}  {render.size(path.stat().st_size)}, downloaded over HTTP")
    _line(console, "", "sha256 verified; loaded with torch.load(weights_only=True)")
    _line(console, "", f"into {check['model']}, {check['parameters']:,} parameters")
    for log in sorted(_logs(root) - known_logs)[:1]:
        _line(console, "curves", str(log.with_suffix(".png")))
        _line(console, "log", str(log))


def _verdict(best: Json) -> str:
    gain = best["macro_f1"] - best["baseline_macro_f1"]
    if gain <= 0.005:
        return "No better than the baseline: so few trades show the path, not an edge."
    return f"{gain:.3f} of macro-F1 above the baseline, on later trades than it learned from."


def _checkpoint(root: Path, client: Client, job_id: str) -> tuple[Path, Json]:
    """Download the best checkpoint, and load it the way a user does."""
    path = client.pull(job_id, root / BEST_NAME)
    command = python("-c", _CHECK, str(path))
    try:
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=_CHECK_S)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"{path} did not load within {_CHECK_S:.0f} s") from None
    if done.returncode:
        raise DemoFailed(f"{path} does not load:\n{done.stderr.strip()}")
    check: Json = json.loads(done.stdout)
    return path, check


def _logs(root: Path) -> set[Path]:
    return set((root / "logs").glob("train_run_*.txt"))


def _line(console: Console, label: str, text: str, style: str | None = None) -> None:
    line = Text.assemble((f"{label:<{_LABEL_WIDTH}}", "dim"), (text, style or ""))
    console.print(line, soft_wrap=True)
