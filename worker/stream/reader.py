"""Blocks of rows from Parquet row groups, in bounded memory.

Shapes: R rows of a block, F... the shape of one row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import cached_property, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from app.datasets.errors import DataChanged, DataError, SchemaMismatch, SourceUnavailable
from app.datasets.parquet import BUFFER_BYTES, THRIFT_CONTAINER_ITEMS, THRIFT_STRING_BYTES, reading
from app.datasets.places import S3Path, openable
from app.datasets.schema import Dataset
from app.errors import shown
from worker.stream.block import Block
from worker.stream.checks import Checks
from worker.stream.decode import (
    Origin,
    decode_features,
    decode_groups,
    decode_labels,
    decode_plain,
    decode_times,
)
from worker.stream.files import Files
from worker.stream.layout import Extent, Layout
from worker.stream.plain import PlainFile

Cut = Callable[[int, int, int], Iterator[tuple[int, int]]]
"""Cuts rows, first and last + 1, into pieces of up to a number of rows, which may overlap."""

MAX_OPEN_FILES = 300
# Without features, a row group of up to so many rows is read at once for all its slices.
WHOLE_ROWS = 1 << 17


class Reader:
    """Reads extents of one dataset, in any order; files are opened when first read and must be closed."""

    def __init__(
        self,
        dataset: Dataset,
        layout: Layout,
        groups: tuple[str, ...],
        files: Files,
        checks: Checks | None = None,
        *,
        keys_only: bool = False,
        verify_checksums: bool = False,
    ) -> None:
        """checks: none = rows are not checked; keys_only: blocks with times and groups, no features.

        verify_checksums: of all pages, besides those that `checks` wants.
        """
        self._verify_checksums = verify_checksums
        self._dataset, self._layout, self._files, self._checks = dataset, layout, files, checks
        self._groups, self._keys_only = pa.array(groups, pa.string()), keys_only
        keys = [] if dataset.group is None else [dataset.timestamp, dataset.group]
        self._others = list(dict.fromkeys(keys if keys_only else [dataset.label, *keys]))
        self._columns = self._others if keys_only else [*dataset.features.columns, *self._others]
        self._read_files: set[int] = set()
        self._open_files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._slices: dict[_Pass, _Slices] = {}
        self._whole: tuple[tuple[int, int], Any] | None = None  # the last row group read whole for its slices

    def blocks(self, extents: Iterable[Extent]) -> Generator[Block, None, None]:
        """Read the extents one by one; closes the files at the end, however it comes."""
        try:
            for extent in extents:
                self._read_files.add(int(self._layout.files[extent[0]]))
                yield self.read(extent)
        finally:
            self.close()

    def pieces(self, extents: Iterable[Extent], cut: Cut) -> Generator[Iterable[Block], None, None]:
        """Read the extents of a dataset without groups one by one, as `blocks` does, for a reader ahead.

        Where its features lie plainly, an extent comes as pieces that are only read when they are asked for:
        copied then, from the page cache, they are in the processor's caches when they are used.
        """
        try:
            for extent in extents:
                self._read_files.add(int(self._layout.files[extent[0]]))
                yield self._pieces(extent, cut) or (self.read(extent),)
        finally:
            self.close()

    def check_unchanged(self) -> None:
        """Raise DataChanged when a file that was read looks different now."""
        for file in sorted(self._read_files):
            if self._files.has_changed(file):
                raise _changed(self._dataset.files[file].name)

    def read(self, extent: Extent) -> Block:
        """Read and decode one extent.

        Raises DataError: DataChanged, CorruptFile, SchemaMismatch, NonFinite, LabelOutOfRange and such,
        naming the file and, where there is one, the row.
        """
        first, last = extent
        layout, dataset = self._layout, self._dataset
        file, start = int(layout.files[first]), int(layout.starts[first])
        origin = Origin(dataset.files[file].name, start - int(layout.file_starts[file]))
        with self._named(file, origin):
            plain_RF = None
            if self._is_plain(extent, origin):
                plain = self._open(file, origin).plain
                plain_RF = self._read_plain(plain, file, start, int(layout.starts[last]), origin)
            columns = self._columns if plain_RF is None else self._others
            table = self._table(file, first, last, columns, origin)
            times_R = groups_R = np.empty(0, np.int64)
            if dataset.group is not None:
                times_R = decode_times(table, dataset.timestamp, origin)
                groups_R = decode_groups(table, dataset.group, self._groups, origin)
            if self._keys_only:
                rows_RF, labels_R = (
                    torch.empty(table.num_rows, 0),
                    torch.zeros(table.num_rows, dtype=torch.int64),
                )
            else:
                rows_RF = decode_features(table, dataset.features, origin) if plain_RF is None else plain_RF
                labels_R = decode_labels(table, dataset.label, origin)
                self._files.keep_labels(start, labels_R)
        block = Block(start, rows_RF, labels_R, times_R, groups_R)
        return block if self._checks is None else self._checks.checked(extent, block, origin)

    def close(self) -> None:
        """Close every file; a later read opens them again."""
        self._slices.clear()
        self._whole = None
        while self._open_files:
            self._open_files.popitem()[1].close()

    def _pieces(self, extent: Extent, cut: Cut) -> Iterable[Block] | None:
        """Return the pieces of an extent, to be read; None when its features do not lie plainly."""
        layout, (first, last) = self._layout, extent
        file, start, stop = int(layout.files[first]), int(layout.starts[first]), int(layout.starts[last])
        origin = Origin(self._dataset.files[file].name, start - int(layout.file_starts[file]))
        with self._named(file, origin):
            if not self._is_plain(extent, origin):
                return None
            labels_R = self._files.kept_labels(start, stop)
            if labels_R is None:
                table = self._table(file, first, last, self._others, origin)
                labels_R = decode_labels(table, self._dataset.label, origin)
        return self._copied(extent, labels_R, origin, cut(start, stop, self._files.piece_rows))

    def _copied(
        self, extent: Extent, labels_R: Tensor, origin: Origin, pieces: Iterator[tuple[int, int]]
    ) -> Iterator[Block]:
        """Read each piece when it is its turn, by a file of its own: this reader may be far ahead."""
        file, start = int(self._layout.files[extent[0]]), int(self._layout.starts[extent[0]])
        no_keys = np.empty(0, np.int64)
        with self._named(file, origin):
            plain = self._files.open_plain(file)
        with closing(plain):
            for low, high in pieces:
                with self._named(file, origin):
                    rows_RF = self._read_plain(plain, file, low, high, origin)
                block = Block(low, rows_RF, labels_R[low - start : high - start], no_keys, no_keys)
                yield block if self._checks is None else self._checks.checked(extent, block, origin)

    def _is_plain(self, extent: Extent, origin: Origin) -> bool:
        """Find the features of an extent in its file, and have the system load them; False if not plain.

        Only what Arrow read and checked before is read without it.
        """
        layout, width = self._layout, self._files.plain_width
        if not width or self._keys_only or self._checks is None or not self._checks.is_done(*extent):
            return False
        file = int(layout.files[extent[0]])
        opened = self._open(file, origin)
        plain = opened.plain
        for unit in range(*extent):
            pages = self._files.pages(file, int(layout.row_groups[unit]), opened.footer)
            before = int(layout.offsets[unit])
            stop = before + int(layout.starts[unit + 1] - layout.starts[unit])
            if pages is None or not plain.find(pages, stop):
                return False
            plain.expect(pages, before, stop)
        return True

    def _read_plain(self, plain: PlainFile, file: int, first: int, last: int, origin: Origin) -> Tensor:
        """Read the features of rows first .. last - 1 of the dataset, which were found in this file."""
        layout, width = self._layout, self._files.plain_width
        content = self._files.take_memory((last - first) * width)
        view, unit, row = content.data, layout.unit_at(first), first
        while row < last:
            stop = min(int(layout.starts[unit + 1]), last)
            pages = self._files.found(file, int(layout.row_groups[unit]))
            before = int(layout.offsets[unit]) + row - int(layout.starts[unit])
            if not plain.read_into(
                view[(row - first) * width : (stop - first) * width], pages, before, stop - row
            ):
                raise _changed(origin.name)
            row, unit = stop, unit + 1
        return decode_plain(content, self._dataset.features)

    def _table(self, file: int, first: int, last: int, columns: list[str], origin: Origin) -> Any:
        """Read some columns of units first .. last - 1 by Arrow."""
        table = self._read_table(file, first, last, columns, origin)
        if table.num_rows != self._layout.starts[last] - self._layout.starts[first]:
            raise _changed(origin.name)
        return table

    def _read_table(self, file: int, first: int, last: int, columns: list[str], origin: Origin) -> Any:
        parquet = self._open(file, origin).parquet
        row_groups = [int(group) for group in self._layout.row_groups[first:last]]
        if self._dataset.features.layout == "list" and not self._keys_only:
            self._refuse_longer_lists(parquet, row_groups, origin)
        if not self._layout.is_slice[first]:
            if len(row_groups) == 1:
                return parquet.read_row_group(row_groups[0], columns=columns, use_threads=False)
            return parquet.read_row_groups(row_groups, columns=columns, use_threads=False)
        offset, num_rows = (
            int(self._layout.offsets[first]),
            int(np.diff(self._layout.starts[[first, last]])[0]),
        )
        if columns is self._others and self._dataset.files[file].row_groups[row_groups[0]] <= WHOLE_ROWS:
            if self._whole is None or self._whole[0] != (file, row_groups[0]):
                table = parquet.read_row_group(row_groups[0], columns=columns, use_threads=False)
                self._whole = (file, row_groups[0]), table
            return self._whole[1].slice(offset, num_rows)
        key = _Pass(file, row_groups[0], len(columns), offset)
        slices = self._pass_at(key)
        if slices is None:
            batches = parquet.iter_batches(
                self._layout.slice_rows, row_groups[:1], columns=columns, use_threads=False
            )
            slices = _Slices(batches)
        table = slices.take(offset, num_rows)
        if last < len(self._layout) and self._layout.offsets[last]:
            self._slices[key._replace(position=slices.position)] = slices
        return table

    def _pass_at(self, wanted: _Pass) -> _Slices | None:
        """Return the pass over a row group that can go on to the wanted position.

        Groups that lie behind one another in a row group are read by a pass each.
        """
        key = wanted
        if key not in self._slices and self._dataset.group is None:
            before = [k for k in self._slices if k[:3] == key[:3] and k.position < key.position]
            key = max(before, default=key)
        return self._slices.pop(key, None)

    def _open(self, file: int, origin: Origin) -> _OpenFile:
        """Return the open file, the least recently used one making room for it."""
        if file in self._open_files:
            self._open_files.move_to_end(file)
            return self._open_files[file]
        # Without groups files are read one after another.
        if len(self._open_files) >= (2 if self._dataset.group is None else MAX_OPEN_FILES):
            oldest, opened = self._open_files.popitem(last=False)
            self._slices = {key: slices for key, slices in self._slices.items() if key.file != oldest}
            opened.close()
        opened = self._open_files[file] = _OpenFile(
            partial(self._open_parquet, file, origin), partial(self._open_plain, file, origin)
        )
        return opened

    def _open_plain(self, file: int, origin: Origin) -> PlainFile:
        plain = self._files.open_plain(file)
        if self._files.has_changed(file):
            plain.close()
            raise _changed(origin.name)
        return plain

    def _open_parquet(self, file: int, origin: Origin) -> pq.ParquetFile:
        units = slice(*np.searchsorted(self._layout.files, [file, file + 1]).tolist())
        path = self._dataset.files[file].path
        is_sliced = bool(self._layout.is_slice[units].any())
        parquet = pq.ParquetFile(
            openable(path),
            # All columns of a row group with few requests, at once.
            pre_buffer=isinstance(path, S3Path) and not is_sliced,
            # A giant row group is read through a buffer, not a whole column chunk at once.
            buffer_size=BUFFER_BYTES if is_sliced else 0,
            thrift_string_size_limit=THRIFT_STRING_BYTES,
            thrift_container_size_limit=THRIFT_CONTAINER_ITEMS,
            page_checksum_verification=self._verify_checksums
            or (self._checks is not None and self._checks.wants_checksums(units)),
            arrow_extensions_enabled=False,
        )
        footer = parquet.metadata
        planned = self._dataset.files[file].row_groups
        if (
            self._files.has_changed(file)
            or tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)) != planned
        ):
            parquet.close()
            raise _changed(origin.name)
        return parquet

    @contextmanager
    def _named(self, file: int, origin: Origin) -> Iterator[None]:
        """Turn what Arrow and the file system raise into named errors; first of all: the file changed."""
        try:
            with reading(self._dataset.files[file].path, origin.name):
                yield
        except DataError as error:
            if isinstance(error, SourceUnavailable) or not self._files.has_changed(file):
                raise
            raise _changed(origin.name) from error

    def _refuse_longer_lists(self, parquet: pq.ParquetFile, row_groups: list[int], origin: Origin) -> None:
        """Stop before decoding lists far longer than planned: a small file can unpack to anything."""
        (name,), elements = self._dataset.features.columns, prod(self._dataset.features.shape)
        for index in row_groups:
            group = parquet.metadata.row_group(index)
            columns = (group.column(i) for i in range(group.num_columns))
            found = sum(c.num_values for c in columns if c.path_in_schema.startswith(f"{name}."))
            if found > 2 * max(1, elements) * group.num_rows:
                raise SchemaMismatch(
                    f"{origin.name}, row group {index}: the lists in {name!r} hold {found} elements in"
                    f" {group.num_rows} rows, expected {elements} in each row",
                    "Every list needs as many elements as data.shape says.",
                )


class _Pass(NamedTuple):
    """Names a pass over a row group that is read in slices, by what is read and how far it is."""

    file: int
    row_group: int
    num_columns: int
    position: int


class _OpenFile:
    """A file as Arrow reads it and as plain bytes, each opened when it is asked for."""

    def __init__(
        self, open_parquet: Callable[[], pq.ParquetFile], open_plain: Callable[[], PlainFile]
    ) -> None:
        self._open_parquet, self._open_plain = open_parquet, open_plain

    @cached_property
    def parquet(self) -> pq.ParquetFile:
        return self._open_parquet()

    @cached_property
    def plain(self) -> PlainFile:
        return self._open_plain()

    def footer(self) -> pq.FileMetaData:
        return self.parquet.metadata

    def close(self) -> None:
        for name in {"parquet", "plain"} & self.__dict__.keys():
            getattr(self, name).close()


class _Slices:
    """One pass over a row group that is too large to hold."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.position = 0
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, offset: int, rows: int) -> Any:
        """Return rows offset .. offset + rows - 1 of the row group; those before are passed over."""
        parts: list[pa.RecordBatch] = []
        missing = rows
        while missing:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            self._rest = None
            if batch is None:
                break
            before = min(max(offset - self.position, 0), batch.num_rows)
            used = min(missing, batch.num_rows - before)
            if used:
                parts.append(batch.slice(before, used))
            if before + used < batch.num_rows:
                self._rest = batch.slice(before + used)
            self.position += before + used
            missing -= used
        return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts)


def _changed(name: str) -> DataChanged:
    return DataChanged(
        f"{shown(name, 256)} is gone or no longer as it was planned",
        "Data must not change while a job uses them; submit the job again.",
    )
