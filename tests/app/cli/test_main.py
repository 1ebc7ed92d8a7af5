"""The command line as a whole: its commands, its exit codes, how soon it starts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.lazy import Lazy
from app.cli.main import COMMANDS, DATA_COMMANDS
from tests.app.cli.call import saimp


@pytest.mark.parametrize("lazy", [*COMMANDS.values(), *DATA_COMMANDS.values()], ids=lambda lazy: lazy.target)
def test_every_command_is_where_the_list_says(lazy: Lazy) -> None:
    module, _, function = lazy.target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_help_lists_every_command() -> None:
    shown = saimp("--help").stdout
    assert all(f" {name} " in shown for name in (*COMMANDS, "data"))


@pytest.mark.parametrize("name", [*COMMANDS, *(f"data {name}" for name in DATA_COMMANDS)])
def test_every_command_has_help(name: str) -> None:
    result = saimp(*name.split(), "--help")
    assert result.exit_code == 0, result.output
    assert f"Usage: saimp {name}" in result.stdout


def test_a_command_that_is_none_gets_a_suggestion() -> None:
    result = saimp("shwo", "x")
    assert result.exit_code == 2
    assert "Did you mean 'show'?" in result.stderr
    assert result.stdout == ""


def test_help_and_client_commands_import_neither_database_nor_data(tmp_path: Path) -> None:
    script = (
        "import sys, importlib; from app.cli import main\n"
        "for name in ('submit', 'ls', 'show', 'watch', 'logs', 'pull', 'cancel', 'up', 'demo'):\n"
        "    importlib.import_module(main.COMMANDS[name].target.partition(':')[0])\n"
        "heavy = {'sqlalchemy', 'alembic', 'pyarrow', 'numpy', 'fastapi', 'uvicorn', 'torch', 'worker'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command", ["ls", "show @last", "watch @last", "logs @last", "cancel @last", "pull @last"]
)
def test_nobody_there_is_exit_code_4(command: str) -> None:
    settings = {"SAIMP_URL": "nonsense"}  # fails at once, where a refused connection is tried again
    result = saimp(*command.split(), **settings)
    assert result.exit_code == 4
    assert result.stdout == ""
    assert "saimp up" in result.stderr


def test_an_unknown_setting_is_a_usage_error() -> None:
    result = saimp("ls", SAIMP_URLL="x")
    assert result.exit_code == 2
    assert "did you mean SAIMP_URL?" in result.stderr
