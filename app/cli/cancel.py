"""`saimp cancel`: stop a job for good."""

from __future__ import annotations

from app.cli import render
from app.cli.connection import connect
from app.cli.console import JobArgument, Output, OutputOption, put_json, talk
from app.jobs.states import FINAL


def cancel(job: JobArgument, output: OutputOption = Output.text) -> None:
    """Stop a job for good; its best checkpoint so far stays."""
    with connect() as client:
        found = client.cancel(client.resolve(job))
    if output is Output.json:
        put_json(found)
    short = found["id"][: render.SHORT]
    if found["status"] in FINAL:
        talk(f"{short} {found['status']}")
    else:
        talk(f"{short} is stopping")
