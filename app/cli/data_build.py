"""`saimp data build`: raw trades to a training dataset, from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from app.cli.console import Output, OutputOption, put, put_json, stderr, talk
from app.cli.failures import FAILED, USAGE, say_error
from app.datasets import build as datasets
from app.datasets.build.options import Period
from app.errors import ServiceError

_COLUMNS, _BARS, _LABELS, _FILES = "Columns", "Bars and ladder", "Labels", "Files"


def build(
    source: Annotated[
        Path,
        typer.Argument(help="A file or a folder of trades: .parquet, .csv or .csv.gz.", show_default=False),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            help="The dataset's folder, e.g. data/btc; a job names it as btc.", show_default=False
        ),
    ],
    timestamp_column: Annotated[
        str | None, typer.Option(help="Time of a trade. Default: by name.", rich_help_panel=_COLUMNS)
    ] = None,
    price_column: Annotated[str | None, typer.Option(help="Price.", rich_help_panel=_COLUMNS)] = None,
    volume_column: Annotated[str | None, typer.Option(help="Volume.", rich_help_panel=_COLUMNS)] = None,
    side_column: Annotated[
        str | None,
        typer.Option(help="Who took liquidity: buy/sell, b/s or 1/-1.", rich_help_panel=_COLUMNS),
    ] = None,
    maker_column: Annotated[
        str | None,
        typer.Option(help="Whether the buyer was the maker (Binance).", rich_help_panel=_COLUMNS),
    ] = None,
    tick_rule: Annotated[
        bool,
        typer.Option(
            "--tick-rule", help="Ignore the side; tell it from the price.", rich_help_panel=_COLUMNS
        ),
    ] = False,
    bar_trades: Annotated[
        int | None, typer.Option(help="Trades of a bar.", show_default="200", rich_help_panel=_BARS)
    ] = None,
    bar_s: Annotated[
        float | None, typer.Option("--bar-seconds", help="Seconds of a bar instead.", rich_help_panel=_BARS)
    ] = None,
    level_size: Annotated[
        float | None,
        typer.Option(help="Price width of a ladder level. Default: the tick size.", rich_help_panel=_BARS),
    ] = None,
    stop: Annotated[
        float, typer.Option(help="Stop, in levels below the close.", rich_help_panel=_LABELS)
    ] = 8,
    target_levels: Annotated[
        float, typer.Option("--target", help="Target, in levels above the close.", rich_help_panel=_LABELS)
    ] = 8,
    target_high: Annotated[
        float, typer.Option(help="Higher target (SuperLong).", rich_help_panel=_LABELS)
    ] = 16,
    horizon_bars: Annotated[
        int | None,
        typer.Option(help="How many bars a label looks.", show_default="50", rich_help_panel=_LABELS),
    ] = None,
    horizon_s: Annotated[
        float | None,
        typer.Option("--horizon-seconds", help="How many seconds instead.", rich_help_panel=_LABELS),
    ] = None,
    period: Annotated[
        Period, typer.Option(help="One file per UTC day, month, ...", rich_help_panel=_FILES)
    ] = "month",
    rows_per_group: Annotated[
        int, typer.Option(help="Rows of a Parquet row group.", rich_help_panel=_FILES)
    ] = 4096,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the dataset, all at once.", rich_help_panel=_FILES)
    ] = False,
    output: OutputOption = Output.text,
) -> None:
    """Turn raw trades into a training dataset: price-ladder features, triple-barrier labels.

    Columns are recognised by name: timestamp, price, volume and side, Binance's transact_time, price,
    quantity and is_buyer_maker, and others. Without a side the tick rule decides.
    """
    try:
        options = datasets.BuildOptions(
            columns=datasets.Columns(
                timestamp=timestamp_column,
                price=price_column,
                volume=volume_column,
                side=side_column,
                maker=maker_column,
                tick_rule=tick_rule,
            ),
            bar_trades=200 if bar_trades is None and bar_s is None else bar_trades,
            bar_s=bar_s,
            level_size=level_size,
            stop=stop,
            target=target_levels,
            target_high=target_high,
            horizon_bars=50 if horizon_bars is None and horizon_s is None else horizon_bars,
            horizon_s=horizon_s,
            period=period,
            rows_per_group=rows_per_group,
        )
        with _progress() as on_progress:
            summary = datasets.build_dataset(
                source, target, options, replace=replace, on_progress=on_progress
            )
    except ServiceError as error:
        say_error(f"{error.message} [{error.code}]", error.hint)
        raise typer.Exit(USAGE if error.status == 422 else FAILED) from None
    if output is Output.json:
        put_json(dataclasses.asdict(summary))
    else:
        put(_text(summary))


@contextmanager
def _progress() -> Iterator[Callable[[datasets.Progress], None]]:
    """A bar on a terminal; elsewhere a line on stderr at every tenth of the input."""
    console = stderr()
    if not console.is_terminal:
        yield _tenths()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("reading trades", total=1.0)
        yield lambda done: bar.update(task, completed=done.share, description=_counts(done))


def _tenths() -> Callable[[datasets.Progress], None]:
    next_tenth = 1

    def report(done: datasets.Progress) -> None:
        nonlocal next_tenth
        if done.share * 10 >= next_tenth:
            talk(f"{done.share:4.0%}  {_counts(done)}")
            next_tenth = int(done.share * 10) + 1

    return report


def _counts(done: datasets.Progress) -> str:
    return f"{done.trades:,} trades, {done.bars:,} bars"


def _text(summary: datasets.BuildSummary) -> str:
    classes = ", ".join(
        f"{name} {count:,} ({count / summary.rows:.1%})" for name, count in summary.class_counts.items()
    )
    side = "from the side column" if summary.aggressor == "side" else "by the tick rule"
    lines = [
        f"{summary.path}: {summary.rows:,} rows in {len(summary.files)} file(s), "
        f"{summary.num_bytes / 2**20:.1f} MiB, {summary.duration_s:.1f} s",
        f"  from     {summary.start}",
        f"  to       {summary.end}",
        f"  trades   {summary.trades:,} in {summary.bars:,} bars, aggressor {side}",
        f"  levels   {summary.level_size:g} wide, {summary.beyond_ladder:.2%} of the trades beyond them",
        f"  classes  {classes}",
        *(f"  warning  {warning}" for warning in summary.warnings),
    ]
    return "\n".join(lines)
