"""What went wrong, said to a person on stderr, and the exit code that says it to a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from app.cli.console import talk
from app.client import AmbiguousId, ClientError, JobUnknown, ServerAway, ServiceProblem
from app.jobs.states import Status
from app.settings import SettingsError

FAILED, USAGE, NOT_FOUND, AWAY, INTERRUPTED = 1, 2, 3, 4, 130


@contextmanager
def failing_politely() -> Iterator[None]:
    """Turn every error a user can run into into words and an exit code."""
    try:
        yield
    except ServiceProblem as problem:
        say_problem(problem)
        raise typer.Exit(_exit_code(problem)) from None
    except ServerAway as away:
        say_error(str(away), "Start one with `saimp up`, or set SAIMP_URL to where it is.")
        raise typer.Exit(AWAY) from None
    except JobUnknown as unknown:
        say_error(str(unknown), "`saimp ls` lists the jobs there are.")
        raise typer.Exit(NOT_FOUND) from None
    except AmbiguousId as ambiguous:
        say_error(str(ambiguous), "Write more of the id.")
        raise typer.Exit(USAGE) from None
    except SettingsError as error:
        say_error(str(error))
        raise typer.Exit(USAGE) from None
    except ClientError as error:
        say_error(str(error))
        raise typer.Exit(FAILED) from None


def say_error(sentence: str, hint: str | None = None) -> None:
    """Say what is wrong and what helps."""
    talk(f"error: {sentence}", style="red")
    if hint:
        talk(f"  {hint}")


def say_problem(problem: ServiceProblem) -> None:
    """Say a problem of the service with everything it lists."""
    say_error(f"{problem.detail} [{problem.code}]", problem.hint)
    width = max((len(str(item.get("pointer", ""))) for item in problem.errors), default=0)
    for item in problem.errors:
        talk(f"  {item.get('pointer', '') or '/':<{width}}  {item.get('message', '')}")
        if item.get("hint"):
            talk(f"  {'':<{width}}  {item['hint']}", style="dim")


def exit_code_of(status: str) -> int:
    """The exit code of a job that has ended."""
    return 0 if status == Status.SUCCEEDED else FAILED


def _exit_code(problem: ServiceProblem) -> int:
    if problem.status == 404:
        return NOT_FOUND
    if problem.status in (502, 503, 504):
        return AWAY
    return USAGE if problem.status in (400, 413, 415, 422) else FAILED
