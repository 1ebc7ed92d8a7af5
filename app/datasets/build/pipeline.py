"""Trades in, dataset out: one pass, in memory that does not grow with the input."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.datasets.build.bars import BarBuilder
from app.datasets.build.errors import TooFewBars
from app.datasets.build.labels import Barriers, Labeller
from app.datasets.build.levels import level_size, sample_prices
from app.datasets.build.options import CLASSES, BuildOptions
from app.datasets.build.staging import check_target, staged
from app.datasets.build.trades import TradeFile, order_files, read_trades
from app.datasets.build.writer import DatasetWriter, Written, dataset_schema

BATCH_ROWS = 1 << 18

_BEYOND_SHARE = 0.05  # of the trades; above it the ladder is too narrow to tell much


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is. share: of the input, in 0..1."""

    share: float
    trades: int
    bars: int
    rows: int


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build made. Times are RFC 3339 UTC; aggressor: "side" or "tick_rule"."""

    path: str
    files: tuple[str, ...]
    trades: int
    bars: int
    rows: int
    start: str
    end: str
    class_counts: dict[str, int]
    level_size: float
    aggressor: str
    beyond_ladder: float
    num_bytes: int
    duration_s: float
    warnings: tuple[str, ...]


def build_dataset(
    source: Path,
    target: Path,
    options: BuildOptions | None = None,
    *,
    replace: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> BuildSummary:
    """Turn a file or folder of trades into a training dataset, a folder of Parquet files.

    Each row is one bar, stamped when it closed: everything in its features was known then, and its label
    at `label_end`. The result depends on the trades and the options only, not on `batch_rows` or on how
    the trades are cut into files. On any error `target` is as it was before.
    Raises the errors of app.datasets.build.errors.
    """
    options = options or BuildOptions()
    started = time.monotonic()
    check_target(target, source, replace=replace)
    files = order_files(source, options.columns)
    size = options.level_size or level_size(sample_prices(read_trades(files, options.columns, batch_rows)))
    aggressor = "side" if files[0].has_side else "tick_rule"
    parameters = options.parameters() | {"level_size": size, "aggressor": aggressor}
    schema = dataset_schema(options.horizon_s or 0.0, parameters)
    with staged(target, replace=replace) as folder:
        writer = DatasetWriter(folder, schema, size, options.period, options.rows_per_group)
        try:
            last = _run(files, options, size, writer, on_progress, batch_rows)
            writer.close()
        finally:
            writer.abandon()
        if not writer.written.rows:
            raise _too_few_bars(last, options)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return _summary(target, writer.written, last, size, aggressor, num_bytes, time.monotonic() - started)


def _run(
    files: list[TradeFile],
    options: BuildOptions,
    size: float,
    writer: DatasetWriter,
    on_progress: Callable[[Progress], None] | None,
    batch_rows: int,
) -> Progress:
    builder = BarBuilder(options.bar_trades, _nanoseconds(options.bar_s), size)
    labeller = Labeller(_barriers(options), size)
    num_trades = num_bars = num_rows = 0
    progress = Progress(0.0, 0, 0, 0)
    for trades in read_trades(files, options.columns, batch_rows):
        bars = builder.push(trades)
        rows = labeller.push(bars) if len(bars) else None
        if rows is not None:
            writer.write(rows)
            num_rows += len(rows)
        num_trades += len(trades.time_ns)
        num_bars += len(bars)
        progress = Progress(trades.progress, num_trades, num_bars, num_rows)
        if on_progress is not None:
            on_progress(progress)
    return progress


def _barriers(options: BuildOptions) -> Barriers:
    horizon_ns = _nanoseconds(options.horizon_s)
    return Barriers(options.stop, options.target, options.target_high, options.horizon_bars, horizon_ns)


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def _too_few_bars(last: Progress, options: BuildOptions) -> TooFewBars:
    bar = f"{options.bar_trades} trades" if options.bar_trades is not None else f"{options.bar_s:g} s"
    horizon = (
        f"{options.horizon_bars} bars" if options.horizon_bars is not None else f"{options.horizon_s:g} s"
    )
    return TooFewBars(
        f"{last.trades} trades make {last.bars} bars of {bar}: none has a full horizon ({horizon}) after it.",
        "Give more trades, smaller bars, or a shorter horizon.",
    )


def _summary(
    target: Path,
    written: Written,
    last: Progress,
    size: float,
    aggressor: str,
    num_bytes: int,
    duration_s: float,
) -> BuildSummary:
    assert written.first_ns is not None
    assert written.last_ns is not None
    beyond = written.beyond / written.trades
    class_counts = dict(zip(CLASSES, written.class_counts, strict=True))
    return BuildSummary(
        path=str(target),
        files=tuple(written.files),
        trades=last.trades,
        bars=last.bars,
        rows=written.rows,
        start=_rfc3339(written.first_ns),
        end=_rfc3339(written.last_ns),
        class_counts=class_counts,
        level_size=size,
        aggressor=aggressor,
        beyond_ladder=beyond,
        num_bytes=num_bytes,
        duration_s=duration_s,
        warnings=tuple(_warnings(class_counts, beyond, size)),
    )


def _warnings(class_counts: dict[str, int], beyond: float, size: float) -> list[str]:
    warnings = [
        f"No row is {name}: move the barriers or the horizon."
        for name, count in class_counts.items()
        if not count
    ]
    if beyond > _BEYOND_SHARE:
        warnings.append(
            f"{beyond:.0%} of the trades lie beyond the ladder of 128 levels of {size:g}: raise --level-size."
        )
    return warnings


def _rfc3339(time_ns: int) -> str:
    return str(np.datetime64(time_ns, "ns").astype("M8[us]")) + "Z"
