"""`saimp up`: the whole service in one terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

import typer
from rich.text import Text

from app.cli.console import stderr, talk
from app.cli.processes import Household, environment, python
from app.cli.roots import AuthOption, DataRoot, Host, LogsRoot, Port, adopt
from app.cli.taken import refuse_if, taken
from app.settings import PREFIX

# A runner obeys within 2 s; the rest is for a last write to a slow disk.
GRACE_S = 30.0
_COLOURS = {"api": "cyan", "worker": "magenta"}


def up(
    data_root: DataRoot = None,
    logs_root: LogsRoot = None,
    host: Host = None,
    port: Port = None,
    auth: AuthOption = None,
) -> None:
    """Migrate, then run API and worker until Ctrl-C or SIGTERM, which stop both gracefully.

    A part that dies is started again, after 1, 5, then 30 s; one that does not get ready, or dies 5 times in
    10 minutes, ends it all with exit code 1.

    What another service holds already, port or data root, is said before anything is started.

    On a terminal their lines carry a name; piped, they come as they are. A second Ctrl-C does not wait.
    """
    settings = adopt(data_root, logs_root, host, port, auth)
    refuse_if(taken(settings))
    household = Household(_write, talk, grace_s=GRACE_S)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        household.interrupt()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    env = environment(PYTHONUNBUFFERED="1")
    migrated = subprocess.run(python("-m", "app.cli.main", "migrate"), env=env, stdin=subprocess.DEVNULL)
    if migrated.returncode:
        raise typer.Exit(migrated.returncode if migrated.returncode > 0 else 1)
    talk(f"data {settings.data_root.absolute()}  logs {settings.logs_root.absolute()}", style="dim")
    # Should this process be killed: the API holds nothing, the worker puts its job back first.
    household.add(
        "api",
        python("-m", "app.cli.main", "api"),
        env,
        signal.SIGKILL,
        ready="listening on ",
        keep=lambda line: {f"{PREFIX}PORT": line.rpartition(":")[2]},  # clients know it by its port
    )
    for device in settings.slots:
        own = [] if device is None else ["--device", device]
        name = "worker" if device is None else f"worker {device}"
        household.add(name, python("-m", "worker", *own), env, signal.SIGTERM, ready="worker ready")
    raise typer.Exit(household.run())


def _write(name: str, line: bytes, is_error: bool) -> None:
    stream = sys.stderr if is_error else sys.stdout
    text = line.decode("utf-8", "replace")
    if stream.isatty():
        stderr().print(
            Text(f"{name:<6} | ", style=_COLOURS[name.split()[0]]) + Text.from_ansi(text), soft_wrap=True
        )
    else:
        stream.write(text + "\n")
        stream.flush()
