"""Blocks of rows from Parquet row groups, in bounded memory.

Shapes: R rows of a block, F... the shape of one row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.datasets.errors import DataChanged, DataError, SchemaMismatch
from app.datasets.parquet import BUFFER_BYTES, THRIFT_CONTAINER_ITEMS, THRIFT_STRING_BYTES, reading
from app.datasets.schema import Dataset
from worker.stream.block import Block
from worker.stream.checks import Checks
from worker.stream.decode import Origin, decode_features, decode_groups, decode_labels, decode_times
from worker.stream.layout import Extent, Layout

MAX_OPEN_FILES = 300


class Reader:
    """Reads extents of one dataset, in any order; files are opened when first read and must be closed."""

    def __init__(
        self,
        dataset: Dataset,
        layout: Layout,
        groups: tuple[str, ...],
        checks: Checks | None = None,
        *,
        keys_only: bool = False,
    ) -> None:
        """checks: none = rows are not checked; keys_only: blocks with times and groups, no features."""
        self._dataset, self._layout, self._checks = dataset, layout, checks
        self._groups, self._keys_only = pa.array(groups, pa.string()), keys_only
        values = [] if keys_only else [*dataset.features.columns, dataset.label]
        keys = [] if dataset.group is None else [dataset.timestamp, dataset.group]
        self._columns = list(dict.fromkeys([*values, *keys]))
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._slices: dict[tuple[int, int, int], _Slices] = {}  # by file, row group and position

    def blocks(self, extents: Iterable[Extent]) -> Generator[Block, None, None]:
        """Read the extents one by one; closes the files at the end, however it comes."""
        try:
            for extent in extents:
                yield self.read(extent)
        finally:
            self.close()

    def read(self, extent: Extent) -> Block:
        """Read and decode one extent.

        Raises DataError: DataChanged, CorruptFile, SchemaMismatch, NonFinite, LabelOutOfRange and such,
        naming the file and, where there is one, the row.
        """
        first, last = extent
        layout, dataset = self._layout, self._dataset
        file, start = int(layout.files[first]), int(layout.starts[first])
        origin = Origin(dataset.files[file].name, start - int(layout.file_starts[file]))
        with _named(dataset, file, origin):
            table = self._table(file, first, last, origin)
            if table.num_rows != layout.starts[last] - start:
                raise _changed(origin)
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
                rows_RF = decode_features(table, dataset.features, origin)
                labels_R = decode_labels(table, dataset.label, origin)
        block = Block(start, rows_RF, labels_R, times_R, groups_R)
        if self._checks is not None:
            self._checks.check(extent, block, origin)
        return block

    def close(self) -> None:
        """Close every file; a later read opens them again."""
        self._slices.clear()
        while self._files:
            self._files.popitem()[1].close()

    def _table(self, file: int, first: int, last: int, origin: Origin) -> Any:
        parquet = self._open(file, origin)
        row_groups = [int(group) for group in self._layout.row_groups[first:last]]
        if self._dataset.features.layout == "list" and not self._keys_only:
            self._refuse_longer_lists(parquet, row_groups, origin)
        if not self._layout.is_slice[first]:
            if len(row_groups) == 1:
                return parquet.read_row_group(row_groups[0], columns=self._columns, use_threads=False)
            return parquet.read_row_groups(row_groups, columns=self._columns, use_threads=False)
        offset = int(self._layout.offsets[first])
        slices = self._pass_at(file, row_groups[0], offset)
        if slices is None:
            batches = parquet.iter_batches(
                self._layout.slice_rows, row_groups[:1], columns=self._columns, use_threads=False
            )
            slices = _Slices(batches)
        table = slices.take(offset, int(self._layout.starts[last] - self._layout.starts[first]))
        if last < len(self._layout) and self._layout.offsets[last]:
            self._slices[file, row_groups[0], slices.position] = slices
        return table

    def _pass_at(self, file: int, row_group: int, offset: int) -> _Slices | None:
        """Return the pass over a row group that can go on to `offset`.

        Groups that lie behind one another in a row group are read by a pass each.
        """
        key = (file, row_group, offset)
        if key not in self._slices and self._dataset.group is None:
            key = max((k for k in self._slices if k[:2] == key[:2] and k[2] < offset), default=key)
        return self._slices.pop(key, None)

    def _open(self, file: int, origin: Origin) -> pq.ParquetFile:
        """Return the open file, the least recently used one making room for it."""
        if file in self._files:
            self._files.move_to_end(file)
            return self._files[file]
        if len(self._files) >= MAX_OPEN_FILES:
            oldest, parquet = self._files.popitem(last=False)
            self._slices = {key: slices for key, slices in self._slices.items() if key[0] != oldest}
            parquet.close()
        units = slice(*np.searchsorted(self._layout.files, [file, file + 1]).tolist())
        parquet = pq.ParquetFile(
            self._dataset.files[file].path,
            pre_buffer=False,
            # A giant row group is read through a buffer, not a whole column chunk at once.
            buffer_size=BUFFER_BYTES if self._layout.is_slice[units].any() else 0,
            thrift_string_size_limit=THRIFT_STRING_BYTES,
            thrift_container_size_limit=THRIFT_CONTAINER_ITEMS,
            page_checksum_verification=self._checks is not None and self._checks.wants_checksums(units),
            arrow_extensions_enabled=False,
        )
        self._files[file] = parquet
        footer = parquet.metadata
        planned = self._dataset.files[file].row_groups
        if tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups)) != planned:
            raise _changed(origin)
        return parquet

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


@contextmanager
def _named(dataset: Dataset, file: int, origin: Origin) -> Iterator[None]:
    """Turn what Arrow and the file system raise into named errors; a file that is gone has changed."""
    path = dataset.files[file].path
    try:
        with reading(path, origin.name):
            yield
    except DataError as error:
        if path.exists():
            raise
        raise _changed(origin) from error


def _changed(origin: Origin) -> DataChanged:
    return DataChanged(
        f"{origin.name} is gone or no longer holds the rows that were planned",
        "Data must not change while a job uses them; submit the job again.",
    )
