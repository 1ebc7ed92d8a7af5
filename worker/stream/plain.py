"""Features that lie in the file as they are used: read straight into memory, with no decoder in between.

Only for fixed-size binary columns, uncompressed and plainly encoded, which is what `data build` writes: one
copy, from the page cache to memory, instead of Arrow's two. Whatever is not exactly that is left to Arrow.
Source: the Parquet format, Thrift.md (compact protocol) and parquet.thrift (PageHeader).
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow.parquet as pq

HEADER_BYTES, LARGEST_HEADER_BYTES = 128, 1 << 16  # without and with statistics in it
DATA_PAGE, PLAIN = 0, 0
MAX_DEPTH = 4  # of structs in structs

Fields: TypeAlias = "dict[int, int | Fields]"


@dataclass(slots=True)
class Pages:
    """Where the values of one column chunk lie, as far as its pages were walked.

    firsts: first row of each page, and the number of rows walked at the end; places: where its values begin.
    """

    firsts: list[int]
    places: list[int]
    next_place: int  # of the next page's header
    stop: int


class PlainFile:
    """One open file whose column is plain in all row groups asked for."""

    def __init__(self, path: Path, width: int) -> None:
        """width: bytes of a row. Raises OSError."""
        self._width = width
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def find(self, pages: Pages, stop: int) -> bool:
        """Walk the pages of the first `stop` rows of a row group; False when one of them is not plain."""
        while pages.firsts[-1] < stop:
            if not self._walk(pages):
                return False
        return True

    def expect(self, pages: Pages, first: int, stop: int) -> None:
        """Have the system load these rows, which were found, while others are in use."""
        if not hasattr(os, "posix_fadvise"):
            return
        low, high = bisect_right(pages.firsts, first) - 1, bisect_left(pages.firsts, stop)
        place, end = pages.places[low], pages.places[high - 1]
        end += (pages.firsts[high] - pages.firsts[high - 1]) * self._width
        try:  # to ask for what is there costs a tenth of copying it
            os.preadv(self._descriptor, [bytearray(1)], end - 1, os.RWF_NOWAIT)
        except OSError:
            os.posix_fadvise(self._descriptor, place, end - place, os.POSIX_FADV_WILLNEED)

    def read_into(self, view: memoryview, pages: Pages, first: int, num_rows: int) -> bool:
        """Fill `view` with rows from `first` of a row group on, which were found; False at the file's end."""
        last = first + num_rows
        page, row, done = bisect_right(pages.firsts, first) - 1, first, 0
        while row < last:
            stop = min(pages.firsts[page + 1], last)
            place = pages.places[page] + (row - pages.firsts[page]) * self._width
            size = (stop - row) * self._width
            if not self._fill(view[done : done + size], place):
                return False
            row, page, done = stop, page + 1, done + size
        return True

    def _fill(self, view: memoryview, place: int) -> bool:
        while view:
            read = os.preadv(self._descriptor, [view], place)
            if not read:
                return False
            view, place = view[read:], place + read
        return True

    def _walk(self, pages: Pages) -> bool:
        """Add the next page; False when it is not plain."""
        if pages.next_place >= pages.stop:
            return False
        for num_bytes in (HEADER_BYTES, LARGEST_HEADER_BYTES):
            content = os.pread(self._descriptor, num_bytes, pages.next_place)
            try:
                header, length = read_struct(content, 0)
                break
            except IndexError:
                continue
        else:
            return False
        page, size = header.get(5), header.get(3)
        if header.get(1) != DATA_PAGE or not isinstance(page, dict) or not isinstance(size, int):
            return False
        num_values = page.get(1)
        if page.get(2) != PLAIN or not isinstance(num_values, int) or num_values < 1 or size != header.get(2):
            return False
        # Before the values: which of them are missing. As many values as rows: none is.
        levels = size - num_values * self._width
        start = pages.next_place + length
        if levels:
            prefix = os.pread(self._descriptor, 4, start)
            if levels < 4 or int.from_bytes(prefix, "little") != levels - 4:
                return False
        if start + size > pages.stop:
            return False
        pages.places.append(start + levels)
        pages.firsts.append(pages.firsts[-1] + num_values)
        pages.next_place = start + size
        return True


def find_pages(footer: pq.FileMetaData, row_group: int, column: str, width: int) -> Pages | None:
    """Return where the pages of a column chunk begin; None when it cannot be plain."""
    group = footer.row_group(row_group)
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == column:
            break
    else:
        return None
    described = footer.schema.column(index)
    if (
        chunk.physical_type != "FIXED_LEN_BYTE_ARRAY"
        or chunk.compression != "UNCOMPRESSED"
        or chunk.has_dictionary_page
        or described.length != width
        or described.max_repetition_level
        or described.max_definition_level > 1
    ):
        return None
    start = chunk.data_page_offset
    return Pages([0], [], start, start + chunk.total_compressed_size)


def read_struct(content: bytes, place: int, depth: int = MAX_DEPTH) -> tuple[Fields, int]:
    """Read a struct of the compact protocol: its integers and structs by field id, and where it ends.

    Raises IndexError when `content` ends before it, or is no page header.
    """
    fields: Fields = {}
    field = 0
    while head := content[place]:
        place += 1
        kind, delta = head & 15, head >> 4
        if delta:
            field += delta
        else:
            number, place = _varint(content, place)
            field = _signed(number)
        match kind:
            case 1 | 2:  # true, false
                fields[field] = 2 - kind
            case 3:  # byte
                fields[field], place = content[place], place + 1
            case 4 | 5 | 6:  # i16, i32, i64
                number, place = _varint(content, place)
                fields[field] = _signed(number)
            case 8:  # binary
                length, place = _varint(content, place)
                place += length
            case 12 if depth:
                fields[field], place = read_struct(content, place, depth - 1)
            case _:  # nothing else is in a page header
                raise IndexError
    return fields, place + 1


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
