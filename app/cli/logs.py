"""`saimp logs`: what the training process wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.connection import connect
from app.cli.console import JobArgument, put

_PATIENCE_S = 30.0


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Begin so many lines before the end.")
    ] = None,
) -> None:
    """Print a job's log; with -f, as it grows. Ctrl-C leaves the job alone."""
    with connect(patience_s=_PATIENCE_S if follow else 1.0) as client:
        job_id = client.resolve(job)
        offset = 0
        if tail is not None:
            text, offset = client.log(job_id, tail=tail)
            put(text, end="")
        if tail is None or follow:
            for text in client.logs(job_id, offset=offset, follow=follow):
                put(text, end="")
