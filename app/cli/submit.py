"""`saimp submit`: queue a training job."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import render
from app.cli.body import read_body
from app.cli.connection import connect
from app.cli.console import Output, OutputOption, put, put_json, stdout, talk
from app.cli.plan import plan_lines
from app.cli.watch import PATIENCE_S, watch_to_the_end
from app.client import Json


def submit(
    file: Annotated[
        str | None, typer.Argument(help="The job as a JSON file; - reads stdin.", show_default=False)
    ] = None,
    path: Annotated[str | None, typer.Option(help="Dataset below the data root, e.g. btc.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a field, e.g. training.epochs=3; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the job would do; queue nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Queue a training job and print its id. `saimp submit --path btc` is a whole job."""
    body = read_body(file, path, name, assignments or [])
    with connect(patience_s=PATIENCE_S if watch else 1.0) as client:
        if dry_run:
            _put_plan(client.plan(body), output)
            return
        job = client.submit(body)
        _say_queued(job, client.url)
        if watch:
            if output is Output.text:
                put(job["id"])
            raise typer.Exit(watch_to_the_end(client, job["id"], output))
    if output is Output.json:
        put_json(job)
    else:
        put(job["id"])


def _put_plan(plan: Json, output: Output) -> None:
    if output is Output.json:
        put_json(plan)
        return
    for line in plan_lines(plan):
        stdout().print(line, soft_wrap=True)


def _say_queued(job: Json, url: str) -> None:
    name = f" {job['name']}" if job["name"] else ""
    talk(f"✓ {render.status(job)}{name}  {url}{job['links']['self']}", style="green")
    for warning in job.get("warnings") or ():
        talk(f"  warning: {warning['message']}", style="yellow")
