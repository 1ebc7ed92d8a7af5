"""`saimp pull`: the best checkpoint, resumed and verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from app.cli import render
from app.cli.connection import connect
from app.cli.console import JobArgument, put, stderr, talk
from app.cli.failures import USAGE, say_error
from app.client import Report

_PATIENCE_S = 30.0


def pull(
    job: JobArgument,
    target: Annotated[
        Path, typer.Option("--output", "-o", help="Folder (for saimp_best.pth) or file to write.")
    ] = Path("."),
) -> None:
    """Download a job's best checkpoint so far and print its path.

    An interrupted download goes on where it stopped; the file takes its name only when its sha256 is right.
    """
    if not (target if target.is_dir() else target.absolute().parent).is_dir():
        say_error(f"there is no folder {target.absolute().parent}", "Make it first.")
        raise typer.Exit(USAGE)
    with connect(patience_s=_PATIENCE_S) as client, _bar() as report:
        path = client.pull(client.resolve(job), target, report=report)
    talk(f"✓ {render.size(path.stat().st_size)}, sha256 verified", style="green")
    put(str(path))


@contextmanager
def _bar() -> Iterator[Report]:
    """A bar on a terminal, nothing elsewhere."""
    console = stderr()
    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report
