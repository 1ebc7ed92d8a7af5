"""`saimp ls`: jobs, newest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from app.cli import render
from app.cli.connection import connect
from app.cli.console import Output, OutputOption, put, put_json, stdout, talk
from app.jobs.states import Status

_HEADINGS = ("ID", "NAME", "STATUS", "EPOCH", "VAL LOSS", "ACC", "STARTED", "TOOK", "NOTE")
_NAME_WIDTH = 24


def ls(
    status: Annotated[
        list[Status] | None, typer.Option(help="Only jobs of this status; may be repeated.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only jobs with this tag.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", "-q", help="Only jobs with this in their name or id.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
    output: OutputOption = Output.text,
) -> None:
    """List jobs, newest first. Piped, the columns are separated by tabs and ids are whole."""
    with connect() as client:
        jobs: list[dict[str, Any]] = []
        after: str | None = None
        while len(jobs) < limit:
            page = client.jobs(
                status=status or (), tag=tag, q=search, limit=min(100, limit - len(jobs)), after=after
            )
            jobs += page["data"]
            after = page["next_after"]
            if not page["has_more"]:
                break
    if output is Output.json:
        put_json(jobs)
    elif not jobs:
        talk("no jobs; `saimp submit --path DATASET` queues one")
    elif stdout().is_terminal:
        stdout().print(_table(jobs))
    else:
        for line in (_HEADINGS, *(_cells(job, str(job["id"])) for job in jobs)):
            put("\t".join(line))


def _table(jobs: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    for heading in _HEADINGS:
        # The note alone gives way when the terminal is narrow.
        table.add_column(
            heading,
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if heading == "NOTE" else None,
            max_width=_NAME_WIDTH if heading == "NAME" else None,
        )
    short = render.short_ids([str(job["id"]) for job in jobs])
    for job in jobs:
        cells = _cells(job, short[str(job["id"])])
        table.add_row(
            *cells, style=render.STYLES.get(job["status"]) if job["status"] != "succeeded" else None
        )
    return table


def _cells(job: dict[str, Any], job_id: str) -> tuple[str, ...]:
    accuracy = (job.get("best") or {}).get("val_accuracy")
    eta_s = (job.get("progress") or {}).get("eta_s")
    note = render.reason(job) if job["status"] != Status.SUCCEEDED else render.words(job["reason"]["code"])
    if job["status"] == Status.RUNNING and eta_s is not None:
        note = f"{render.duration(eta_s)} left"
    if job.get("champion"):
        note = f"champion, {note}"
    return (
        job_id,
        job["name"] or render.DASH,
        render.status(job),
        render.epoch(job),
        render.best(job),
        render.percent(accuracy),
        render.clock(job.get("started_at")),
        render.duration(render.took(job)),
        note,
    )
