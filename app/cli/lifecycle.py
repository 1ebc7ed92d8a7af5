"""What becomes of a job: `saimp pause`, resume, retry, clone, move, rm; and of the queue: drain, open."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import render
from app.cli.body import read_body
from app.cli.connection import connect
from app.cli.console import JobArgument, Output, OutputOption, put, put_json, talk
from app.client import Json


def pause(job: JobArgument, output: OutputOption = Output.text) -> None:
    """Free the GPU; `saimp resume` goes on exactly there."""
    with connect() as client:
        found = client.pause(client.resolve(job))
    _say(found, "is paused" if found["status"] == "paused" else "is saving and will pause", output)


def resume(job: JobArgument, output: OutputOption = Output.text) -> None:
    """Let a paused job wait for its turn again."""
    with connect() as client:
        found = client.resume(client.resolve(job))
    _say(found, f"is {render.status(found)}", output)


def retry(
    job: JobArgument,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="From zero, not from its newest checkpoint.")
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Queue a job that has ended once more; it goes on where it was saved last. Prints the new id.

    One that has succeeded only --from-start: nothing is left of it to do.
    """
    with connect() as client:
        _put_new(client.retry(client.resolve(job), from_start=from_start), output)


def clone(
    job: JobArgument,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a field, e.g. optimizer.lr=3e-4; may be repeated."
        ),
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Queue a new job with the config of this one. Prints the new id."""
    patch = read_body(None, None, None, assignments) if assignments else {}
    with connect() as client:
        _put_new(client.clone(client.resolve(job), patch), output)


def move(
    job: JobArgument,
    before: Annotated[str | None, typer.Option(metavar="ID", help="The job to run before.")] = None,
    after: Annotated[str | None, typer.Option(metavar="ID", help="The job to run after.")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Put a waiting job right before or after another one; it takes that job's priority."""
    if (before is None) == (after is None):
        raise typer.BadParameter("name one neighbour, with --before or with --after")
    with connect() as client:
        sides = {
            side: client.resolve(other)
            for side, other in (("before", before), ("after", after))
            if other is not None
        }
        found = client.move(client.resolve(job), **sides)
    _say(found, f"is {render.status(found)}", output)


def promote(
    job: JobArgument,
    end: Annotated[
        bool, typer.Option("--end", help="End its promotion: the best of the comparable follows.")
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Make a job's best the champion, `saimp_best.pth` in the data root: no later job replaces it."""
    with connect() as client:
        job_id = client.resolve(job)
        found = client.end_promotion(job_id) if end else client.promote(job_id)
    if end:
        what = "is not promoted" + (", and the best of its key" if found["champion"] else "")
    else:
        what = f"is promoted to champion, with val loss {render.loss(found['best']['val_loss'])}"
    _say(found, what, output)


def rm(
    job: JobArgument,
    drop_champion: Annotated[
        bool, typer.Option("--drop-champion", help="Also the champion: the next best follows.")
    ] = False,
) -> None:
    """Delete a job that has ended, with its log and files."""
    with connect() as client:
        job_id = client.resolve(job)
        client.delete(job_id, drop_champion=drop_champion)
    talk(f"{job_id[: render.SHORT]} is deleted")


def drain(
    finish: Annotated[bool, typer.Option("--finish", help="Let what runs run to its end.")] = False,
    output: OutputOption = Output.text,
) -> None:
    """Start no job any more; what runs is saved and put back. `saimp open` ends it."""
    with connect() as client:
        line = client.drain(finish_running=finish)
    if output is Output.json:
        put_json(line)
    talk(f"the queue is drained; {len(line['data'])} jobs wait")


def open_queue(output: OutputOption = Output.text) -> None:
    """Start jobs again."""
    with connect() as client:
        line = client.open_queue()
    if output is Output.json:
        put_json(line)
    talk(f"the queue is open; {len(line['data'])} jobs wait")


def _say(job: Json, what: str, output: Output) -> None:
    if output is Output.json:
        put_json(job)
    talk(f"{job['id'][: render.SHORT]} {what}")


def _put_new(job: Json, output: Output) -> None:
    if output is Output.json:
        put_json(job)
    else:
        put(job["id"])
    talk(f"✓ {render.status(job)}", style="green")
