"""Opening and reading Parquet files that may be damaged or hostile: every failure is a named error.

Footers first, columns in bounded batches, page checksums verified, never `pyarrow.dataset`
(apache/arrow#39808: it keeps what it read).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.errors import (
    BadColumnName,
    CorruptFile,
    DataError,
    NotParquet,
    SourceUnavailable,
    Truncated,
    UnsupportedFeature,
    check_deadline,
)
from app.datasets.places import Place, S3Path, aws_reason, openable
from app.errors import shown

BATCH_ROWS = 1 << 17
BUFFER_BYTES = 1 << 20  # a column chunk is read through this, however large its row group
MAX_FOOTER_BYTES = 1 << 28
# Footers beyond these are damaged or hostile.
THRIFT_STRING_BYTES = 100_000_000
THRIFT_CONTAINER_ITEMS = 4_000_000

_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_ENCRYPTED_HINT = "Write the file again without encryption."
_REWRITE = "Copy or write the file again; `saimp data inspect` checks it."


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Consecutive rows of a file; first_row: their first row in it, from 0."""

    first_row: int
    columns: dict[str, Any]  # pa.Array


@dataclass(frozen=True, slots=True)
class FooterBytes:
    """What names a file's content: its size, and its footer's length and sha256."""

    size: int
    length: int
    sha256: str


def read_footer_bytes(path: Place, name: str) -> FooterBytes:
    """Check the magic numbers and hash the footer. Raises NotParquet, Truncated, UnsupportedFeature."""
    with reading(path, name), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(4)
        if head not in (_MAGIC, _ENCRYPTED):
            found = f"it begins with {head!r}" if head else "it is empty"
            raise NotParquet(f"{shown(name)} is not a Parquet file: {found}.", "Export the data as Parquet.")
        file.seek(max(4, size - 8))
        tail = file.read(8)
        if tail[4:] == _ENCRYPTED or head == _ENCRYPTED:
            raise UnsupportedFeature(f"{shown(name)} has an encrypted footer.", _ENCRYPTED_HINT)
        if tail[4:] != _MAGIC:
            raise Truncated(f"{shown(name)} is cut short: it does not end with {_MAGIC!r}.", _REWRITE)
        footer = int.from_bytes(tail[:4], "little")
        if footer > min(size - 12, MAX_FOOTER_BYTES):
            raise NotParquet(
                f"{shown(name)} is damaged: its footer claims {footer:,} bytes in a file of {size:,}.",
                _REWRITE,
            )
        file.seek(size - 8 - footer)
        return FooterBytes(size, footer, hashlib.sha256(file.read(footer)).hexdigest())


def refuse_encrypted_columns(file: pq.ParquetFile, footer: FooterBytes, name: str) -> None:
    """Refuse encrypted columns under a plain footer. Raises UnsupportedFeature.

    The sign of them is the signature behind the footer's thrift bytes.
    Source: Parquet modular encryption, 5.5 Plaintext footer mode.
    """
    if file.metadata.serialized_size != footer.length:
        raise UnsupportedFeature(f"{shown(name)} has encrypted columns or a signed footer.", _ENCRYPTED_HINT)


@contextmanager
def open_parquet(path: Place, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file with every guard on; failures inside the block become named errors too."""
    with (
        reading(path, name),
        pq.ParquetFile(
            openable(path),
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            thrift_string_size_limit=THRIFT_STRING_BYTES,
            thrift_container_size_limit=THRIFT_CONTAINER_ITEMS,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        ) as file,
    ):
        yield file


def read_columns(
    path: Place,
    name: str,
    columns: Sequence[str],
    *,
    row_groups: Sequence[int] | None = None,
    first_row: int = 0,
    batch_rows: int | None = None,
    deadline: float | None = None,
) -> Generator[RowBatch, None, None]:
    """Yield some columns in row order, at most `batch_rows` (null: BATCH_ROWS) at a time.

    row_groups: only these, of which the first begins at `first_row`. Dictionary columns come as they are.
    deadline: time.monotonic() after which PreflightTimeout is raised.
    """
    with open_parquet(path, name) as file:
        groups = range(file.metadata.num_row_groups) if row_groups is None else row_groups
        batches = file.iter_batches(
            batch_size=batch_rows or BATCH_ROWS,
            row_groups=list(groups),
            columns=list(columns),
            use_threads=False,
        )
        for batch in batches:
            check_deadline(deadline)
            if batch.num_rows:
                yield RowBatch(first_row, {column: batch.column(column) for column in columns})
            first_row += batch.num_rows


def read_first(path: Place, name: str, column: str, row_groups: Sequence[int]) -> Any:
    """Return the first row of a column as an Arrow array of one value; row_groups: rows in each."""
    group = next(index for index, rows in enumerate(row_groups) if rows)
    batch = next(read_columns(path, name, [column], row_groups=[group], batch_rows=1), None)
    if batch is None:
        raise CorruptFile(
            f"{shown(name)} has no rows where its footer claims {row_groups[group]:,}.", _REWRITE
        )
    return batch.columns[column]


@contextmanager
def reading(path: Place, name: str) -> Iterator[None]:
    """Turn what pyarrow and the file system raise into named errors without server paths."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise BadColumnName(
            f"{shown(name)}: a name in it is not valid UTF-8.", "Rename the column."
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise UnsupportedFeature(f"{shown(name)}: {_reason(error, path)}", _REWRITE) from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _classified(error, path, name) from error


def unavailable(error: OSError, name: str) -> SourceUnavailable:
    """Say that an object cannot be had, and why as far as the S3 client knows."""
    return SourceUnavailable(
        f"{shown(name)} cannot be had from its bucket: {aws_reason(error) or 'no answer'}.",
        "Check the network, and credentials, region and endpoint of the service; then try again.",
    )


def has_page_checksums(path: Place) -> bool:
    """Whether the header of the first page, right behind the magic number, carries a CRC.

    A header of another form counts as having one.
    Source: parquet.thrift, PageHeader: fields 1 to 3 are required i32, field 4 (crc) optional;
    in the compact protocol each is one byte (delta << 4 | type) and a varint.
    """
    with path.open("rb") as file:
        header = file.read(4 + 64)[4:]
    place = 0
    for _ in range(3):
        if header[place : place + 1] != b"\x15":
            return True
        place += 1
        while place < len(header) and header[place] & 0x80:
            place += 1
        place += 1
    return header[place : place + 1] == b"\x15"


def _classified(error: Exception, path: Place, name: str) -> DataError:
    reason, text = _reason(error, path), str(error).lower()
    if isinstance(error, FileNotFoundError | PermissionError):
        why = "is gone" if isinstance(error, FileNotFoundError) else "may not be read by the service"
        return NotParquet(f"{shown(name)} {why}.", "Check the file, then try again.")
    if isinstance(path, S3Path) and isinstance(error, OSError):
        return unavailable(error, name)
    if "encrypt" in text or "decrypt" in text:
        return UnsupportedFeature(f"{shown(name)} is encrypted.", _ENCRYPTED_HINT)
    if ("codec" in text or "compression" in text) and re.search("not built|unsupported|not supported", text):
        return UnsupportedFeature(f"{shown(name)}: {reason}", "Compress with zstd or snappy.")
    if "crc checksum" in text:
        return CorruptFile(f"{shown(name)}: a page does not match its checksum; a byte changed.", _REWRITE)
    if "magic bytes" in text or "thrift" in text or "footer" in text:
        return NotParquet(f"{shown(name)} is not a readable Parquet file: {reason}", _REWRITE)
    return CorruptFile(f"{shown(name)} cannot be decoded: {reason}", _REWRITE)


def _reason(error: Exception, path: Place) -> str:
    """The library's own sentence, with no place of this server in it."""
    text = str(error).replace(str(path), path.name).replace(str(path.parent), "")
    return shown(" ".join(text.split()), 160)
