"""How large the pages and the lists of a column are, from the file's own headers, before anything is decoded.

A page is decoded whole: one that is larger than memory ends the process, however small the file is. Row
groups are read in slices, so only pages matter; and lists, of which one row may hold any number of values in
a page of a few bytes. The footer is parsed here, in bounds, because pyarrow's
`row_group(i).column(j)` aborts the process on a damaged one (pyarrow 26).
Source: parquet.thrift and the thrift compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.datasets.errors import NotParquet, RowGroupTooLarge, SchemaMismatch
from app.datasets.parquet import FooterBytes, reading
from app.datasets.places import Place
from app.errors import shown

MAX_FOOTER_PARSED = 1 << 24
MAX_PAGES = 1 << 16
HEADER_BYTES = (1 << 8, 1 << 16, 1 << 22)

# Thrift field numbers.
_ROW_GROUPS, _COLUMNS, _COLUMN_META = 4, 1, 3
_PATH, _DATA_PAGE, _DICTIONARY_PAGE, _NUM_VALUES, _COMPRESSED_SIZE = 3, 9, 11, 5, 7
_PAGE_UNPACKED, _PAGE_PACKED = 2, 3
_MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where the pages of one column of a row group lie in the file, and how many values are in them."""

    column: str
    start: int
    end: int
    num_values: int


def refuse_large_pages(
    path: Place, name: str, footer: FooterBytes, columns: frozenset[str], row_groups: set[int], limit: int
) -> None:
    """Raise RowGroupTooLarge when a page of these columns unpacks to more than `limit` bytes."""
    if footer.length > MAX_FOOTER_PARSED:
        return
    with reading(path, name), path.open("rb") as file:
        file.seek(footer.size - 8 - footer.length)
        chunks = _chunks(file.read(footer.length), name)
        for index in sorted(row_groups):
            for chunk in chunks.get(index, ()):
                if chunk.column not in columns:
                    continue
                for size in _page_sizes(file, chunk, name):
                    if size > limit:
                        raise RowGroupTooLarge(
                            f"{shown(name)}, row group {index}: a page of {shown(chunk.column)!r} unpacks to"
                            f" {size / 2**20:,.0f} MiB, and pages are decoded whole; allowed are"
                            f" {limit / 2**20:,.0f} MiB.",
                            "Write the file with pages of about 1 MiB (pyarrow: data_page_size), or raise"
                            " SAIMP_STREAM_BUDGET.",
                        )


def refuse_long_lists(
    path: Place,
    name: str,
    footer: FooterBytes,
    column: str,
    row_groups: Sequence[int],
    *,
    elements: int | None,
    limit: int,
) -> None:
    """Refuse lists that are far longer than a row of the shape. row_groups: rows in each.

    elements: of a row; null when the first row is to tell, and then a row group may hold `limit` values.
    Raises SchemaMismatch, RowGroupTooLarge.
    """
    if footer.length > MAX_FOOTER_PARSED:
        return
    with reading(path, name), path.open("rb") as file:
        file.seek(footer.size - 8 - footer.length)
        chunks = _chunks(file.read(footer.length), name)
    for index, rows in enumerate(row_groups):
        found = sum(chunk.num_values for chunk in chunks.get(index, ()) if chunk.column == column)
        if elements is not None and found > 2 * max(1, elements) * rows:
            raise SchemaMismatch(
                f"{shown(name)}, row group {index}: the lists in {shown(column)!r} hold {found:,} elements in"
                f" {rows:,} rows, expected {elements:,} in each row.",
                "Every list needs as many elements as data.shape says.",
                pointer="/data/features",
            )
        if elements is None and found > limit:
            raise RowGroupTooLarge(
                f"{shown(name)}, row group {index}: the lists in {shown(column)!r} hold {found:,} elements in"
                f" {rows:,} rows, too many to look at the first to see how many a row has.",
                "Set data.shape to what one row holds.",
            )


def _chunks(footer: bytes, name: str) -> dict[int, list[Chunk]]:
    """The column chunks of each row group."""
    try:
        groups = _Reader(footer).struct().get(_ROW_GROUPS, [])
        return {index: list(_chunks_of(group)) for index, group in enumerate(groups)}
    except (IndexError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise NotParquet(f"{shown(name)}: its footer is damaged.", "Copy or write the file again.") from error


def _chunks_of(group: dict[int, Any]) -> Iterator[Chunk]:
    for column in group.get(_COLUMNS, []):
        meta = column.get(_COLUMN_META)
        if meta is None:  # encrypted; refused elsewhere
            continue
        start = min(offset for offset in (meta[_DATA_PAGE], meta.get(_DICTIONARY_PAGE)) if offset)
        yield Chunk(meta[_PATH][0].decode(), start, start + meta[_COMPRESSED_SIZE], meta[_NUM_VALUES])


def _page_sizes(file: Any, chunk: Chunk, name: str) -> Iterator[int]:
    place = chunk.start
    for _ in range(MAX_PAGES):
        if place >= chunk.end:
            return
        header = _page_header(file, place, name)
        if header is None:
            return
        unpacked, packed, header_bytes = header
        yield unpacked
        if packed < 0:
            return
        place += header_bytes + packed


def _page_header(file: Any, place: int, name: str) -> tuple[int, int, int] | None:
    """Return a page's unpacked and packed size and that of its header; None for one beyond all bounds."""
    for size in HEADER_BYTES:
        file.seek(place)
        reader = _Reader(file.read(size))
        try:
            page = reader.struct()
            return int(page[_PAGE_UNPACKED]), int(page[_PAGE_PACKED]), reader.place
        except IndexError:
            continue  # it holds statistics, of any length
        except (ValueError, KeyError, TypeError) as error:
            raise NotParquet(
                f"{shown(name)}: a page header at byte {place:,} is damaged.", "Copy or write the file again."
            ) from error
    return None


class _Reader:
    """Reads thrift's compact protocol; raises IndexError or ValueError for anything malformed."""

    def __init__(self, data: bytes) -> None:
        self._data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return field number -> value."""
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._unsigned())
            case 9 | 10:
                return self._list(depth)
            case 12:
                return self.struct(depth + 1)
            case _:
                raise ValueError(f"type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        size = head >> 4 if head >> 4 < 15 else self._unsigned()
        if size > len(self._data):
            raise ValueError("longer than the data")
        if head & 15 in (1, 2):  # in a list a truth value takes a byte
            return [self._byte() == 1 for _ in range(size)]
        return [self._value(head & 15, depth + 1) for _ in range(size)]

    def _byte(self) -> int:
        value = self._data[self.place]
        self.place += 1
        return value

    def _bytes(self, size: int) -> bytes:
        if size > len(self._data) - self.place:
            raise IndexError
        value = self._data[self.place : self.place + size]
        self.place += size
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number without end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
