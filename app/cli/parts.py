"""`saimp api`, `saimp worker`, `saimp migrate`: one part of the service each."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from app.cli.failures import FAILED, say_error
from app.cli.processes import environment, python
from app.cli.roots import AuthOption, DataRoot, Host, LogsRoot, Port, adopt
from app.cli.taken import port_taken, refuse_if

Device = Annotated[str | None, typer.Option(help="Its slot, where SAIMP_DEVICES names several.")]

# Each part imports only what it is made of: the others' imports would cost every part memory for life.


def api(
    data_root: DataRoot = None,
    logs_root: LogsRoot = None,
    host: Host = None,
    port: Port = None,
    auth: AuthOption = None,
) -> None:
    """Run the HTTP API alone. It waits for the right schema, else says what to run."""
    settings = adopt(data_root, logs_root, host, port, auth)
    refuse_if(port_taken(settings.host, settings.port))
    from app.main import serve  # noqa: PLC0415

    serve(settings)


def worker(
    data_root: DataRoot = None,
    logs_root: LogsRoot = None,
    host: Host = None,
    port: Port = None,
    auth: AuthOption = None,
    device: Device = None,
) -> None:
    """Run the worker alone. It waits for the right schema, else says what to run."""
    adopt(data_root, logs_root, host, port, auth)
    command = python("-m", "worker", *([] if device is None else ["--device", device]))
    # Become the worker: runners import the main module of their parent, which must be small.
    sys.stdout.flush()
    os.execve(command[0], command, environment())


def migrate(
    data_root: DataRoot = None,
    logs_root: LogsRoot = None,
    host: Host = None,
    port: Port = None,
    auth: AuthOption = None,
) -> None:
    """Bring the database to the newest schema; on a current one, do nothing."""
    settings = adopt(data_root, logs_root, host, port, auth)
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from app.errors import StorageUnavailable  # noqa: PLC0415
    from app.jobs.files import Paths  # noqa: PLC0415
    from app.migrate import WrongSchema  # noqa: PLC0415
    from app.migrate import migrate as run  # noqa: PLC0415

    try:
        run(settings.database, Paths(settings.data_root, settings.logs_root))
    except StorageUnavailable as error:
        say_error(error.message, error.hint)
    except WrongSchema as error:
        say_error(str(error))
    except (SQLAlchemyError, OSError) as error:
        why = str(error).splitlines()[0]
        say_error(
            f"the database cannot be used: {why}", "SAIMP_DATABASE_URL and SAIMP_DATA_ROOT say where it is."
        )
    else:
        return
    raise typer.Exit(FAILED)
