"""Trade files, Parquet or CSV, as Arrow batches of their trade columns: streamed, never whole."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from app.datasets.build.columns import TradeColumns, find_columns, headerless_names
from app.datasets.build.errors import NoTradeFiles, NoTrades, UnreadableTrades
from app.datasets.build.options import Columns
from app.errors import shown

_KINDS = (".parquet", ".csv", ".csv.gz")
_READ_ERRORS = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error)
# The reader decodes some blocks ahead, so a block decides the memory; larger ones are no faster.
_CSV_BLOCK_BYTES = (1 << 12, 1 << 20)
_CSV_LINE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive rows of one file; only its trade columns.

    first_row: of the batch in its file, from 1 (a header line does not count).
    progress: share of the file read so far, in 0..1.
    """

    rows: pa.RecordBatch
    columns: TradeColumns
    first_row: int
    progress: float


def trade_files(source: Path) -> list[Path]:
    """The trade files of a file or a folder, in no meaningful order. Raises NoTradeFiles."""
    known = ", ".join(_KINDS)
    if source.is_file():
        if not source.name.lower().endswith(_KINDS):
            raise NoTradeFiles(f"{source} is not a trade file.", f"Trade files end in {known}.")
        return [source]
    if not source.is_dir():
        raise NoTradeFiles(f"{source} does not exist.", "Give a file of trades, or a folder of such files.")
    found = [
        path
        for path in source.rglob("*")
        if path.name.lower().endswith(_KINDS)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not found:
        raise NoTradeFiles(f"{source} holds no trade file.", f"Trade files end in {known}.")
    return sorted(found)


def read_batches(path: Path, asked: Columns, batch_rows: int) -> Iterator[Batch]:
    """Stream the trade columns of one file, at most `batch_rows` rows at a time.

    Raises NoTrades for a file without rows, MissingColumn, and UnreadableTrades with the reader's reason.
    """
    first_row = 1
    is_parquet = path.name.lower().endswith(".parquet")
    batches = _read_parquet(path, asked, batch_rows) if is_parquet else _read_csv(path, asked, batch_rows)
    for columns, batch, progress in batches:
        for start in range(0, batch.num_rows, batch_rows):
            rows = batch.slice(start, batch_rows)
            yield Batch(rows, columns, first_row, progress)
            first_row += rows.num_rows
    if first_row == 1:
        raise NoTrades(f"{path.name} holds no trade.", "Remove the file, or fetch it again.")


_Read = Iterator[tuple[TradeColumns, pa.RecordBatch, float]]


def _read_parquet(path: Path, asked: Columns, batch_rows: int) -> _Read:
    with _reading(path):
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    with file:
        columns = find_columns(file.schema_arrow.names, asked, path.name)
        done, total = 0, max(file.metadata.num_rows, 1)
        batches = file.iter_batches(batch_rows, columns=columns.names, use_threads=False)
        while True:
            with _reading(path):
                batch = next(batches, None)
            if batch is None:
                return
            done += batch.num_rows
            yield columns, batch, done / total


def _read_csv(path: Path, asked: Columns, batch_rows: int) -> _Read:
    with _reading(path):
        if not path.stat().st_size:
            raise NoTrades(f"{path.name} is empty.", "Remove the file, or fetch it again.")
        header, first_line = _first_lines(path)
    names = headerless_names(header)
    columns = find_columns(names or header, asked, path.name)
    values = dict(zip(names or header, header if names else first_line, strict=False))
    block_bytes = min(max(batch_rows * _CSV_LINE_BYTES, _CSV_BLOCK_BYTES[0]), _CSV_BLOCK_BYTES[1])
    is_packed = path.suffix.lower() == ".gz"
    with _reading(path):
        raw = pa.OSFile(str(path), "rb")
        stream = pa.CompressedInputStream(raw, "gzip") if is_packed else raw
        size = max(raw.size(), 1)
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=block_bytes,
                column_names=names,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns.names, column_types=_types(columns, values), strings_can_be_null=True
            ),
        )
    for num_blocks in itertools.count(1):
        with _reading(path):
            batch = next(reader, None)
            # The file's position is up to 32 blocks ahead: good enough for packed files only.
            position = raw.tell() if is_packed else num_blocks * block_bytes
        if batch is None:
            return
        yield columns, batch, min(position / size, 1.0)


def _first_lines(path: Path) -> tuple[list[str], list[str]]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8-sig", errors="replace")
    lines = csv.reader(io.StringIO(text))
    return next(lines, []), next(lines, [])


def _types(columns: TradeColumns, first_values: dict[str, str]) -> dict[str, pa.DataType]:
    # Decided once from the first line: inference by the reader would change with the block size.
    types = {columns.price: pa.float64(), columns.volume: pa.float64()}
    types[columns.timestamp] = _number_type(first_values.get(columns.timestamp, "")) or pa.string()
    for flag in (columns.side, columns.maker):
        if flag is not None:
            types[flag] = pa.string()
    return types


def _number_type(text: str) -> pa.DataType | None:
    try:
        int(text)
    except ValueError:
        try:
            float(text)
        except ValueError:
            return None
        return pa.float64()
    return pa.int64()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise UnreadableTrades(
            f"{path.name} cannot be read: {shown(error, 200)}",
            "It may be truncated or damaged: fetch it again and compare its checksum.",
        ) from error
