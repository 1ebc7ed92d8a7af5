"""The options every part of the service takes. They travel as environment, so that children see them too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.settings import PREFIX, Settings, load

Auth = Literal["token", "off"]

DataRoot = Annotated[
    Path | None, typer.Option(help="Datasets, jobs, database.", show_default="data", envvar=None)
]
LogsRoot = Annotated[Path | None, typer.Option(help="Training logs and plots.", show_default="logs")]
Host = Annotated[str | None, typer.Option(help="Where the API listens.", show_default="127.0.0.1")]
Port = Annotated[
    int | None, typer.Option(help="Its port; 0 = any free one.", min=0, max=65535, show_default="8000")
]
AuthOption = Annotated[
    str | None, typer.Option(help="token or off; accepted and not yet enforced.", show_default="token")
]


def adopt(
    data_root: Path | None, logs_root: Path | None, host: str | None, port: int | None, auth: str | None
) -> Settings:
    """Put the options that were given into the environment, and read the settings. Raises SettingsError."""
    given = {"data_root": data_root, "logs_root": logs_root, "host": host, "port": port, "auth": auth}
    for name, value in given.items():
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(value)
    return load()
