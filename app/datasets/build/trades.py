"""Raw trades, checked and in one shape: a stream of arrays in time order over all files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from app.datasets.build.aggressor import TickRule, read_side
from app.datasets.build.arrays import Floats, Ints, Signs
from app.datasets.build.errors import (
    BadTrade,
    MissingColumn,
    MissingValue,
    OverlappingFiles,
    UnsortedTrades,
)
from app.datasets.build.options import Columns
from app.datasets.build.sources import Batch, read_batches, trade_files
from app.datasets.build.timestamps import to_nanoseconds, unit_of
from app.errors import shown

_LARGEST = 1e15  # keeps sums of volumes, and prices counted in levels, exact or at least finite


@dataclass(frozen=True, slots=True)
class Trades:
    """Consecutive trades.

    time_ns: [N] nanoseconds since 1970 UTC, never falling. price, volume: [N], above zero and finite.
    side: [N], +1 where the buyer took liquidity, -1 where the seller did.
    progress: share of all input read so far, in 0..1.
    """

    time_ns: Ints
    price: Floats
    volume: Floats
    side: Signs
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class TradeFile:
    """One input file: its first instant (which orders the files) and whether it tells the aggressor."""

    path: Path
    first_ns: int
    has_side: bool
    num_bytes: int


def order_files(source: Path, columns: Columns) -> list[TradeFile]:
    """The trade files of a file or folder by their first trade, not by name.

    Raises NoTradeFiles; MissingColumn too when only some files tell the aggressor.
    """
    files = sorted((_open(path, columns) for path in trade_files(source)), key=lambda file: file.first_ns)
    silent = [file for file in files if not file.has_side]
    if silent and len(silent) < len(files):
        told = next(file for file in files if file.has_side)
        raise MissingColumn(
            f"{silent[0].path.name} has no side column, {told.path.name} has one.",
            "Add it, name it, or use --tick-rule for all files.",
        )
    return files


def read_trades(files: list[TradeFile], columns: Columns, batch_rows: int) -> Iterator[Trades]:
    """Stream the trades of files that are in order, at most `batch_rows` at a time.

    Raises a named error with file, row and value for everything that is not a sequence of trades.
    """
    tick_rule = TickRule()
    total_bytes = max(sum(file.num_bytes for file in files), 1)
    done_bytes, last_ns = 0, None
    for number, file in enumerate(files):
        reader = _FileReader(file.path)
        for batch in read_batches(file.path, columns, batch_rows):
            time_ns, price, volume = reader.read(batch)
            if last_ns is not None and time_ns[0] < last_ns:
                _refuse_disorder(reader, files, number, batch.first_row, int(time_ns[0]), last_ns)
            reader.check_order(time_ns, batch.first_row)
            last_ns = int(time_ns[-1])
            side = tick_rule.sides(price) if not file.has_side else reader.side(batch)
            progress = (done_bytes + batch.progress * file.num_bytes) / total_bytes
            yield Trades(time_ns, price, volume, side, progress)
        done_bytes += file.num_bytes


def _open(path: Path, columns: Columns) -> TradeFile:
    batch = next(read_batches(path, columns, 1024))
    time_ns, _, _ = _FileReader(path).read(batch)
    has_side = batch.columns.side is not None or batch.columns.maker is not None
    return TradeFile(path, int(time_ns[0]), has_side, path.stat().st_size)


class _FileReader:
    """Turns the batches of one file into arrays; the first one settles the unit of integer times."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unit: tuple[str, int] | None = None
        self._first_row = 1

    def read(self, batch: Batch) -> tuple[Ints, Floats, Floats]:
        self._first_row = batch.first_row
        time = self._column(batch, batch.columns.timestamp)
        numeric = pa.types.is_integer(time.type) or pa.types.is_floating(time.type)
        if numeric and batch.first_row == 1:
            self._unit = unit_of(time[0].as_py())
        time_ns = to_nanoseconds(time, self._unit, self.place)
        return (
            time_ns,
            self._positive(batch, batch.columns.price),
            self._positive(batch, batch.columns.volume),
        )

    def side(self, batch: Batch) -> Signs:
        names = batch.columns
        name = names.side or names.maker
        assert name is not None
        return read_side(self._column(batch, name), is_maker=names.side is None, row_of=self.place)

    def check_order(self, time_ns: Ints, first_row: int) -> None:
        back = np.flatnonzero(time_ns[1:] < time_ns[:-1])
        if len(back):
            row = int(back[0]) + 1
            raise _unsorted(self._path, first_row + row, int(time_ns[row]), int(time_ns[row - 1]))

    def place(self, row: int) -> str:
        """Name a row of the current batch, as a person counts: the first trade of a file is row 1."""
        return f"{self._path.name}, row {self._first_row + row}"

    def _column(self, batch: Batch, name: str) -> pa.Array:
        column = batch.rows.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise MissingValue(
                f"{self.place(row)}: no value in column {shown(name)!r}.", "Remove or repair the row."
            )
        return column

    def _positive(self, batch: Batch, name: str) -> Floats:
        column = self._column(batch, name)
        try:
            # A float32 of 1640.1 means 1640.1, not 1640.0999755859375: go through its shortest text. Arrow's
            # cast of decimals to float64 is a bit off too (pyarrow 26).
            is_inexact = pa.types.is_float32(column.type) or pa.types.is_decimal(column.type)
            column = column.cast(pa.string()) if is_inexact else column
            values: Floats = column.cast(pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise BadTrade(
                f"{self.place(0)} or a later row: column {shown(name)!r} is not a number: {shown(error, 120)}"
            ) from error
        bad = np.flatnonzero(~((values > 0) & (values <= _LARGEST)))
        if len(bad):
            row = int(bad[0])
            raise BadTrade(
                f"{self.place(row)}: {shown(name)} is {values[row]:g} ({len(bad)} such rows in this batch).",
                f"Prices and volumes are above 0 and at most {_LARGEST:g}. Remove or repair these rows.",
            )
        return values


def _refuse_disorder(
    reader: _FileReader, files: list[TradeFile], number: int, row: int, found_ns: int, last_ns: int
) -> None:
    path = files[number].path
    if row > 1:
        raise _unsorted(path, row, found_ns, last_ns)
    before = files[number - 1].path
    raise OverlappingFiles(
        f"{path.name} starts at {_text(found_ns)}, before {before.name} ends at {_text(last_ns)}.",
        "Files must not share time: remove the duplicate, or merge and sort the two.",
    )


def _unsorted(path: Path, row: int, found_ns: int, before_ns: int) -> UnsortedTrades:
    return UnsortedTrades(
        f"{path.name}, row {row}: {_text(found_ns)} is earlier than the row before it, {_text(before_ns)}.",
        "Sort the file by time; rows of one instant keep their order.",
    )


def _text(time_ns: int) -> str:
    return str(np.datetime64(time_ns, "ns")) + "Z"
