"""The options that say how a dataset is to be read, and the data section they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.cli.failures import FAILED, USAGE, say_error
from app.datasets.errors import DataError
from app.errors import shown
from app.jobs.config import DataConfig

PathArgument = Annotated[
    str,
    typer.Argument(
        help="File, folder or glob below the data root, e.g. demo, or s3://...", show_default=False
    ),
]
GroupOption = Annotated[str | None, typer.Option(help="Column that separates series.")]
TimestampOption = Annotated[str, typer.Option(help="Column of the time.")]
LabelOption = Annotated[str, typer.Option(help="Column of the class.")]
LabelEndOption = Annotated[
    str | None, typer.Option(help="Column of when the label is known.", show_default="label_end if present")
]
HorizonOption = Annotated[
    float | None, typer.Option(help="Seconds a label looks ahead.", show_default="the dataset's metadata")
]
WindowOption = Annotated[int, typer.Option(help="Rows in one sample.", min=1, max=65536)]


def data_section(root: Path, path: str, **fields: Any) -> DataConfig:
    """Make the data section; what is wrong with it is said, and ends the command."""
    try:
        return DataConfig(path=_below(root, path), **fields)
    except ValidationError as error:
        say_error(f"{shown(error.errors(include_url=False)[0]['msg'], 160)}")
        raise typer.Exit(USAGE) from None


def refuse(error: DataError) -> typer.Exit:
    """Say everything that is wrong with a dataset; raise what comes back."""
    for problem in error.problems:
        say_error(f"{problem.message} [{problem.code}]", problem.hint)
    return typer.Exit(FAILED)


def _below(root: Path, path: str) -> str:
    """Accept a path as the shell completes it (data/demo), besides one below the data root (demo)."""
    given, home = Path(path).resolve(), root.resolve()
    if not (root / path).exists() and given.exists() and given != home and given.is_relative_to(home):
        return given.relative_to(home).as_posix()
    return path
