"""Call `saimp` the way a shell does, inside this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from app.cli.main import app

NOBODY = "http://127.0.0.1:1"


def saimp(*arguments: object, url: str = NOBODY, stdin: str | None = None, **settings: str) -> Result:
    """Run a command with SAIMP_URL set; stdout and stderr are apart, and no terminal."""
    environment = {"SAIMP_URL": url, "NO_COLOR": "1", **settings}
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments], input=stdin)
