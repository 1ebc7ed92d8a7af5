"""`saimp data audit`: does training see what it could not know? Read from the files, without a server."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli.console import Output, OutputOption, put_json, stdout
from app.cli.data_section import (
    GroupOption,
    HorizonOption,
    LabelEndOption,
    LabelOption,
    PathArgument,
    TimestampOption,
    WindowOption,
    data_section,
    refuse,
)
from app.cli.failures import FAILED
from app.cli.roots import DataRoot
from app.datasets.audit import audit_dataset
from app.datasets.errors import DataError
from app.settings import load

_STYLES = {"leak": "red", "suspect": "yellow"}


def audit(
    path: PathArgument,
    group: GroupOption = None,
    timestamp: TimestampOption = "timestamp",
    label: LabelOption = "label",
    label_end: LabelEndOption = None,
    horizon_s: HorizonOption = None,
    window: WindowOption = 32,
    data_root: DataRoot = None,
    output: OutputOption = Output.text,
) -> None:
    """Look for leaks: labels, features, scaling and copies that tell training what it could not know.

    The exit code is 1 when something is found, or no job could train on the data.
    """
    settings = load(data_root=data_root)
    data = data_section(
        settings.data_root,
        path,
        group=group,
        timestamp=timestamp,
        label=label,
        label_end=label_end,
        horizon_s=horizon_s,
        window=window,
    )
    try:
        found = audit_dataset(settings.sources, data, budget_bytes=settings.stream_budget)
    except DataError as error:
        raise refuse(error) from None
    if output is Output.json:
        put_json(found)
    else:
        _show(found, stdout())
    if found["findings"]:
        raise typer.Exit(FAILED)


def _show(found: dict[str, Any], console: Console) -> None:
    for finding in found["findings"]:
        severity = finding["severity"]
        line = Text(f"{severity:<9}", style=_STYLES[severity]) + Text(
            f"[{finding['code']}] {finding['message']}"
        )
        console.print(line, soft_wrap=True)
        console.print(Text(f"{'':<9}{finding['remedy']}", style="dim"), soft_wrap=True)
    number = len(found["findings"])
    count = f"{number or 'No'} finding{'' if number == 1 else 's'}"
    console.print(
        f"{count} in {found['rows_read']:,} rows of {found['path']}"
        f" ({found['rows_judged']:,} judged with their neighbours).",
        soft_wrap=True,
    )
    for warning in found["warnings"]:
        console.print(Text(f"{'warning':<9}", style="yellow") + Text(warning["message"]), soft_wrap=True)
