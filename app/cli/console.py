"""Where words go: data to stdout, talk to stderr. Rich leaves colours out for pipes and NO_COLOR."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from app.text import escaped


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


class _Console(Console):
    """Rich, but what cannot be printed comes escaped: names and messages are strangers' text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaped(segment.text, keep="\n"))


def stdout() -> Console:
    """The console of data. Made at each use: tests and pipes put another file there."""
    return _Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """The console of talk."""
    return _Console(file=sys.stderr, highlight=False, markup=False, emoji=False)


def talk(line: str, style: str | None = None) -> None:
    """Say a line to the person at the terminal."""
    stderr().print(line, style=style, soft_wrap=True)


def put(text: str, end: str = "\n") -> None:
    """Write data: lines, and tabs between columns."""
    sys.stdout.write(escaped(text, keep="\n\t") + end)
    sys.stdout.flush()


def put_json(value: Any) -> None:
    """Write JSON data: indented for a person, one line for a pipe."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None)
    put(escaped(text, keep="\n", write=lambda character: json.dumps(character)[1:-1]))
