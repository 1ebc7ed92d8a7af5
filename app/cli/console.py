"""Where words go: data to stdout, talk to stderr. Rich leaves colours out for pipes and NO_COLOR."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console


class Output(StrEnum):
    """What stdout carries."""

    text = "text"
    json = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="What stdout carries.")]
JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A job's id, the beginning of one, @last, @best or @best:DATASET.",
        show_default=False,
    ),
]


def stdout() -> Console:
    """The console of data. Made at each use: tests and pipes put another file there."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console of talk."""
    return Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def talk(line: str, style: str | None = None) -> None:
    """Say a line to the person at the terminal."""
    stderr().print(line, style=style, soft_wrap=True)


def put(line: str) -> None:
    """Write a line of data."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def put_json(value: Any) -> None:
    """Write JSON data: indented for a person, one line for a pipe."""
    put(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
