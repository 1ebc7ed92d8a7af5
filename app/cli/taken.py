"""What another service holds already: looked at before anything is started."""

from __future__ import annotations

import errno
import fcntl
import json
import socket
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from app.cli.failures import FAILED, say_error
from app.errors import shown
from app.jobs.files import Paths
from app.settings import Settings

_ASK_S = 1.0


def taken(settings: Settings) -> Iterator[tuple[str, str]]:
    """Say what stands in the way of a service with these settings, each with what helps."""
    root = settings.data_root.absolute()
    for device in settings.slots:
        if not (holder := holder_of(Paths(root, settings.logs_root).worker_lock(device))):
            continue
        yield (
            f"the data root {root} is served already, by worker {holder.get('pid')}"
            f" since {str(holder.get('since')).replace('T', ' ')[:19]} UTC",
            "Use that service, stop it, or start this one with another --data-root.",
        )
    yield from port_taken(settings.host, settings.port)


def refuse_if(obstacles: Iterable[tuple[str, str]]) -> None:
    """Say all that stands in the way, and end the command if anything does."""
    found = list(obstacles)
    for sentence, hint in found:
        say_error(sentence, hint)
    if found:
        raise typer.Exit(FAILED)


def port_taken(host: str, port: int) -> Iterator[tuple[str, str]]:
    """Say who listens there, or why nobody can."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            yield f"cannot listen on {host}:{port}: {error.strerror}", "Choose others with --host and --port."
            return
        yield (
            f"port {port} of {host} is taken{_by(host, port)}",
            f"Use that, stop it, or choose another port: --port {port + 1 if port < 65535 else 0};"
            " 0 takes any free one.",
        )


def holder_of(lock: Path) -> dict[str, Any] | None:
    """Read who holds a worker's lock; null when nobody does."""
    with suppress(FileNotFoundError), open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with suppress(ValueError):
                return dict(json.load(file))
            return {}
    return None


def _by(host: str, port: int) -> str:
    """Name the holder of a port as far as it can be told."""
    words = [word for word in (_service(host, port), _process(port)) if word]
    return f": {', '.join(words)}" if words else " by another program"


def _service(host: str, port: int) -> str | None:
    address = f"[{host}]" if ":" in host else host
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError, KeyError, TypeError):
        with direct.open(f"http://{address}:{port}/", timeout=_ASK_S) as answer:
            about = json.loads(answer.read(2**16))
        return f"a {shown(about['name'])} {shown(about['version'])} answers there"
    return None


def _process(port: int) -> str | None:
    import psutil  # noqa: PLC0415 - needed only when something is wrong

    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
                return f"process {one.pid} ({shown(' '.join(psutil.Process(one.pid).cmdline()))})"
    return None
