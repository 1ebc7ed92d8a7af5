"""`saimp watch`: follow a job until it ends. Ctrl-C lets go of it; it goes on."""

from __future__ import annotations

import typer
from rich.console import Console

from app.cli import board, render
from app.cli.connection import connect
from app.cli.console import JobArgument, Output, OutputOption, put_json, stderr, stdout, talk
from app.cli.failures import INTERRUPTED, exit_code_of
from app.cli.follow import follow
from app.client import Client, Json

PATIENCE_S = 30.0  # a service that restarts is waited for


def watch(job: JobArgument, output: OutputOption = Output.text) -> None:
    """Follow a job with live progress; with -o json, print it when it has ended.

    The exit code says how it ended: 0 succeeded, 1 not. Ctrl-C lets go of the job, which goes on.
    """
    with connect(patience_s=PATIENCE_S) as client:
        raise typer.Exit(watch_to_the_end(client, client.resolve(job), output))


def watch_to_the_end(client: Client, job_id: str, output: Output) -> int:
    """Draw a job's progress until it ends and return its exit code."""
    console = stderr() if output is Output.json else stdout()
    try:
        story = board.show(follow(client, job_id), console)
    except KeyboardInterrupt:
        talk(f"detached; the job goes on. To come back: saimp watch {job_id[: render.SHORT]}")
        return INTERRUPTED
    say_ending(story.job, console)
    if output is Output.json:
        put_json(story.job)
    return exit_code_of(story.job["status"])


def say_ending(job: Json, console: Console) -> None:
    """Say how a job ended, why, and what helps."""
    style = render.STYLES.get(job["status"])
    reason = job["reason"]
    words = f"{render.MARKS[job['status']]} {job['status']}"
    if reason["code"] and reason["code"] != "none":
        words += f" ({reason['code']})"
    if job.get("best"):
        words += f", best val loss {render.loss(job['best']['val_loss'])} at epoch {job['best']['epoch']}"
    took = render.took(job)
    console.print(words + (f", {render.duration(took)}" if took is not None else ""), style=style)
    for line in (reason.get("message"), reason.get("hint")):
        if line and job["status"] != "succeeded":
            console.print(f"  {line}", soft_wrap=True)
