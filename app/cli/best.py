"""Work on a job's best checkpoint, done by a process of the worker: this one never loads torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import typer

from app.cli.connection import connect
from app.cli.failures import NOT_FOUND, say_error
from app.cli.processes import environment, python
from app.jobs.files import Paths
from app.settings import Settings


def find_best(job: str, settings: Settings) -> Path:
    """Return a checkpoint: `job` is its file, or a job whose files are below the data root.

    The service is asked only for what the data root does not tell: the beginning of an id, @last or @best.
    """
    if job.endswith(".pth"):
        path = Path(job)
    else:
        paths = Paths(settings.data_root, settings.logs_root)
        job_id = job if paths.job(job).is_dir() and "/" not in job else _resolved(job)
        path = paths.best(job_id)
    if not path.is_file():
        say_error(
            f"there is no checkpoint {path}",
            "`saimp pull` fetches one from a service elsewhere; give the file instead of the id.",
        )
        raise typer.Exit(NOT_FOUND)
    return path


def run_worker(module: str, *arguments: str, settings: Settings) -> None:
    """Run a module of the worker with these arguments and end as it does."""
    allowed = [prefix.strip() for prefix in settings.custom_models.split(",") if prefix.strip()]
    flags = [flag for prefix in allowed for flag in ("--allow", prefix)]
    done = subprocess.run(
        python("-m", module, *arguments, *flags), env=environment(), stdin=subprocess.DEVNULL
    )
    raise typer.Exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def _resolved(job: str) -> str:
    with connect() as client:
        return client.resolve(job)
