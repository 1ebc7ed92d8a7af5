"""`saimp`: every command, where it is and what it is for."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.cli.lazy import Lazy, lazy_group
from app.version import version_text

_RUN, _JOBS, _DATA = "Run the service", "Jobs", "Data"

COMMANDS = {
    "demo": Lazy("app.cli.demo:demo", "See it all on real market data, in minutes.", _RUN),
    "up": Lazy("app.cli.up:up", "Migrate, then run API and worker in this terminal.", _RUN),
    "api": Lazy("app.cli.parts:api", "Run the HTTP API alone.", _RUN),
    "worker": Lazy("app.cli.parts:worker", "Run the worker alone.", _RUN),
    "migrate": Lazy("app.cli.parts:migrate", "Bring the database to the newest schema.", _RUN),
    "config": Lazy("app.cli.config:config", "Print every field of a job, with default and bounds.", _JOBS),
    "submit": Lazy("app.cli.submit:submit", "Queue a training job.", _JOBS),
    "ls": Lazy("app.cli.ls:ls", "List jobs, newest first.", _JOBS),
    "show": Lazy("app.cli.show:show", "Show one job.", _JOBS),
    "watch": Lazy("app.cli.watch:watch", "Follow a job with live progress.", _JOBS),
    "logs": Lazy("app.cli.logs:logs", "Print a job's log.", _JOBS),
    "pull": Lazy("app.cli.pull:pull", "Download a job's best checkpoint, verified.", _JOBS),
    "cancel": Lazy("app.cli.cancel:cancel", "Stop a job for good.", _JOBS),
    "pause": Lazy("app.cli.lifecycle:pause", "Free the GPU; resume goes on exactly there.", _JOBS),
    "resume": Lazy("app.cli.lifecycle:resume", "Let a paused job wait for its turn again.", _JOBS),
    "retry": Lazy("app.cli.lifecycle:retry", "Queue a job that has ended once more.", _JOBS),
    "clone": Lazy("app.cli.lifecycle:clone", "Queue a new job with a job's config, changed.", _JOBS),
    "move": Lazy("app.cli.lifecycle:move", "Change the order of the jobs that wait.", _JOBS),
    "promote": Lazy("app.cli.lifecycle:promote", "Make a job's best the champion, or end that.", _JOBS),
    "rm": Lazy("app.cli.lifecycle:rm", "Delete a job that has ended.", _JOBS),
    "drain": Lazy("app.cli.lifecycle:drain", "Start no job any more, until the queue is opened.", _JOBS),
    "open": Lazy("app.cli.lifecycle:open_queue", "Start jobs again.", _JOBS),
    "predict": Lazy("app.cli.predict:predict", "Classify a dataset with a job's best checkpoint.", _JOBS),
    "export": Lazy(
        "app.cli.export:export", "Write a best checkpoint as safetensors, ONNX or torch.export.", _JOBS
    ),
}

DATA_COMMANDS = {
    "build": Lazy("app.cli.data_build:build", "Turn raw trades into a training dataset."),
    "audit": Lazy("app.cli.data_audit:audit", "Look for leaks: what training could not know."),
    "inspect": Lazy(
        "app.cli.data_inspect:inspect", "Describe a dataset: schema, time range, holes, classes."
    ),
}

app = typer.Typer(
    name="saimp",
    cls=lazy_group(COMMANDS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train sequence models on one box: submit over HTTP, watch, pull the best checkpoint.",
    epilog="SAIMP_URL says where the service is (http://127.0.0.1:8000). Every command knows --help.",
)
data = typer.Typer(cls=lazy_group(DATA_COMMANDS), no_args_is_help=True)
app.add_typer(data, name="data", help="Build, inspect and audit datasets.", rich_help_panel=_DATA)


@data.callback()
def _data() -> None:
    """Build and inspect datasets."""


@app.callback()
def _saimp(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda on: _version(on)),
    ] = False,
) -> None:
    """Train sequence models on one box."""


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets another one, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    app(prog_name="saimp")


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"saimp {version_text()}")
        raise typer.Exit


if __name__ == "__main__":
    main()
