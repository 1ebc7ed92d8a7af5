"""A command group that imports a command when it is called: none waits for another's imports."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from app.cli.failures import failing_politely


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command's function is, as module:function, and its line in the list of commands."""

    target: str
    help: str
    panel: str | None = None


def lazy_group(commands: Mapping[str, Lazy]) -> type[TyperGroup]:
    """Make the group class of these commands, in this order."""

    class LazyGroup(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [*commands, *super().list_commands(ctx)]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            """Return what the list of commands shows; what runs is made by resolve_command."""
            lazy = commands.get(cmd_name)
            if lazy is None:
                return super().get_command(ctx, cmd_name)
            return TyperCommand(cmd_name, help=lazy.help, rich_help_panel=lazy.panel)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name = args[0]
            if name in commands:
                return name, _load(name, commands[name].target), args[1:]
            if name not in self.list_commands(ctx) and not name.startswith("-"):
                close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
                ctx.fail(f"No such command '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
            return super().resolve_command(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            with failing_politely():
                return super().invoke(ctx)

    return LazyGroup


def _load(name: str, target: str) -> Any:
    module, _, function = target.partition(":")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name)(getattr(importlib.import_module(module), function))
    return typer.main.get_command(alone)
