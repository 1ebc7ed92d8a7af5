"""`saimp data inspect`: what is in a dataset, read from the files without a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli import render
from app.cli.console import Output, OutputOption, put, put_json, stdout, talk
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
from app.datasets.errors import DataError
from app.datasets.inspect import inspect_dataset
from app.errors import shown
from app.settings import load

MAX_FILES_SHOWN = 10
MAX_ELEMENTS_SHOWN = 8
_PARTS = ("train", "val", "test")


def inspect(
    path: PathArgument,
    group: GroupOption = None,
    timestamp: TimestampOption = "timestamp",
    label: LabelOption = "label",
    label_end: LabelEndOption = None,
    horizon_s: HorizonOption = None,
    window: WindowOption = 32,
    is_quick: Annotated[bool, typer.Option("--quick", help="Do not read the features.")] = False,
    data_root: DataRoot = None,
    output: OutputOption = Output.text,
) -> None:
    """Describe a dataset: files, rows, time range, holes, classes, features, default split, warnings.

    The exit code is 1 when a job could not train on it.
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
        found = inspect_dataset(
            settings.sources, data, budget_bytes=settings.stream_budget, has_features=not is_quick
        )
    except DataError as error:
        raise refuse(error) from None
    if output is Output.json:
        put_json(found)
    else:
        _show(found, stdout())
    if found["errors"]:
        raise typer.Exit(FAILED)


def _show(found: dict[str, Any], console: Console) -> None:
    for name, value in _facts(found):
        console.print(Text(f"{name:<11}", style="dim") + Text(value), soft_wrap=True)
    if found["splits"]:
        if console.is_terminal:
            console.print(_split_table(found))
        else:
            for line in _split_lines(found):
                put(line)
    for warning in found["warnings"]:
        console.print(Text(f"{'warning':<11}", style="yellow") + Text(warning["message"]), soft_wrap=True)
    for error in found["errors"]:
        talk(f"error: {error['message']} [{error['code']}]", style="red")
        if error["hint"]:
            talk(f"  {error['hint']}")


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    files, features, stamp = found["files"], found["features"], found["timestamp"]
    yield "path", found["path"]
    yield "rows", f"{found['rows']:,} in {len(files)} file(s)"
    for file in files[:MAX_FILES_SHOWN]:
        yield "", f"{shown(file['name'])}  {file['rows']:,} rows, {file['row_groups']} row group(s)"
    if len(files) > MAX_FILES_SHOWN:
        yield "", f"and {len(files) - MAX_FILES_SHOWN} more"
    guessed = ", guessed from integers" if stamp["unit_detected"] else ""
    yield (
        "time",
        f"{found['start'] or render.DASH} to {found['end'] or render.DASH} ({stamp['unit']}{guessed})",
    )
    for gap in found["largest_gaps"]:
        yield "gap", f"{gap['seconds']:,.3f} s from {gap['start']}"
    yield "duplicates", f"{found['duplicate_timestamps']:,} rows at the time of the row before"
    columns = ", ".join(shown(name, 32) for name in features["columns"][:8])
    more = f" and {len(features['columns']) - 8} more" if len(features["columns"]) > 8 else ""
    yield "features", f"{features['dtype']} {features['shape']} as {features['layout']}: {columns}{more}"
    if found["feature_values"]:
        yield from _values(found["feature_values"], is_named=features["layout"] == "columns")
    yield "label", f"{shown(found['label'])}: {_balance(found, list(found['label_counts'].values()))}"
    ends = shown(found["label_end"]) if found["label_end"] else "no label_end column"
    yield "label end", f"{ends}, horizon {found['horizon_s']:g} s"
    if found["groups"]:
        yield (
            "groups",
            f"{len(found['groups'])}: {', '.join(shown(group, 16) for group in found['groups'][:8])}",
        )
    if found["metadata"]:
        build = found["metadata"].get("build")
        yield "metadata", _pairs({**found["metadata"], "build": None})
        if isinstance(build, dict):
            yield "built with", _pairs(build)
    yield "content", found["fingerprint"]


def _pairs(known: dict[str, Any]) -> str:
    texts = ((key, ", ".join(map(str, v)) if isinstance(v, list) else v) for key, v in known.items())
    return "; ".join(f"{shown(key)} {shown(text)}" for key, text in texts if text is not None)


def _values(values: dict[str, Any], *, is_named: bool) -> Iterator[tuple[str, str]]:
    """The figures of named columns, and of all features together; single cells of a tensor say little."""
    for element in values["elements"][: MAX_ELEMENTS_SHOWN if is_named else 0]:
        yield (
            "",
            f"{element['name']}  {element['min']:.4g} to {element['max']:.4g}, mean {element['mean']:.4g},"
            f" deviation {element['deviation']:.4g}",
        )
    if is_named and values["num_elements"] > MAX_ELEMENTS_SHOWN:
        yield "", f"and {values['num_elements'] - MAX_ELEMENTS_SHOWN} more"
    yield "values", f"{values['non_finite']:,} not finite, {values['constant']:,} features never change"


def _balance(found: dict[str, Any], counts: list[int]) -> str:
    keys = list(found["label_counts"])
    names = found["classes"]
    total = max(1, sum(counts))
    shares = []
    for key, number in zip(keys, counts, strict=True):
        name = names[int(key)] if names and 0 <= int(key) < len(names) else key
        shares.append(f"{shown(name)} {number:,} ({number / total:.1%})")
    return ", ".join(shares)


def _part_shares(found: dict[str, Any], part: dict[str, Any]) -> str:
    total = max(1, sum(part["class_counts"]))
    pairs = zip(found["classes"], part["class_counts"], strict=True)
    return ", ".join(f"{shown(name)} {number:,} ({number / total:.1%})" for name, number in pairs)


def _split_lines(found: dict[str, Any]) -> Iterator[str]:
    for name in _PARTS:
        part = found["splits"][name]
        if part:
            yield (
                f"{name:<11}{part['windows']:,} windows of {part['rows']:,} rows, {_dropped(part)} dropped,"
                f" {part['start']} to {part['end']}: {_part_shares(found, part)}"
            )


def _split_table(found: dict[str, Any]) -> Table:
    table = Table(title="Default split", title_justify="left")
    for heading in ("part", "rows", "windows", "dropped", "from", "to", "classes"):
        table.add_column(heading, justify="right" if heading in ("rows", "windows", "dropped") else "left")
    for name in _PARTS:
        part = found["splits"][name]
        if part:
            table.add_row(
                name,
                f"{part['rows']:,}",
                f"{part['windows']:,}",
                f"{_dropped(part):,}",
                part["start"][:19],
                part["end"][:19],
                _part_shares(found, part).replace(", ", "\n"),
            )
    return table


def _dropped(part: dict[str, Any]) -> int:
    return sum(count or 0 for count in part["dropped"].values())
