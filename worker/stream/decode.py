"""Arrow columns to torch tensors, without a copy where the layout allows.

Shapes: R rows of a block, E elements of one row (the product of its shape), F... the shape of one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from app.datasets.errors import BadGroup, LabelOutOfRange, SchemaMismatch
from app.datasets.schema import Features
from app.errors import shown

FLOAT32 = pa.float32()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a block comes from: its file's relative name and its first row in that file, from 0."""

    name: str
    row: int

    def at(self, row: int) -> str:
        """Name the block's row `row` for a message."""
        return f"{shown(self.name, 256)}, row {self.row + row} (the first row is 0)"


def decode_features(table: pa.Table, features: Features, origin: Origin) -> Tensor:
    """Return the features as float32 [R, *shape]: a view of Arrow memory for float32 binary and lists.

    Raises SchemaMismatch for nulls, for lists of another length and for types that are not numbers.
    """
    if features.layout == "columns":
        rows_RE = _flat(table, features.columns, origin)
    else:
        (name,) = features.columns
        decode = _binary if features.layout == "binary" else _list
        rows_RE = decode(_column(table, name, origin), name, features, origin)
    return rows_RE.view(-1, *features.shape)


def decode_plain(content: NDArray[np.uint8], features: Features) -> Tensor:
    """Return little-endian numbers, row by row as they lie in a binary column, as float32 [R, *shape]."""
    values = content.view(np.dtype(features.dtype).newbyteorder("<"))
    return torch.from_numpy(values).to(torch.float32).view(-1, *features.shape)


def decode_labels(table: pa.Table, name: str, origin: Origin) -> Tensor:
    """Return the labels as int64 [R]; a missing one is -1."""
    column = _decoded(_column(table, name, origin))
    if not pa.types.is_integer(column.type):
        raise LabelOutOfRange(
            f"{origin.name}: label column {shown(name)!r} is {column.type}, not an integer",
            "Store classes as integers 0..K-1.",
        )
    column = column.cast(pa.int64())
    return from_dlpack(column if column.null_count == 0 else pc.fill_null(column, -1))


def decode_times(table: pa.Table, name: str, origin: Origin) -> NDArray[np.int64]:
    """Return the timestamps as int64 [R], in the unit they are stored in."""
    column = _decoded(_column(table, name, origin))
    if column.null_count:
        raise _null(origin.at(_first_null(column)), name)
    return np.asarray(column.cast(pa.int64()))


def decode_groups(table: pa.Table, name: str, groups: pa.Array, origin: Origin) -> NDArray[np.int64]:
    """Return each row's place in `groups`, int64 [R]."""
    column = _column(table, name, origin)
    if pa.types.is_dictionary(column.type):
        place = pc.take(pc.index_in(_text(column.dictionary), groups), column.indices)
    else:
        place = pc.index_in(_text(column), groups)
    if place.null_count:
        where = origin.at(_first_null(place))
        raise BadGroup(
            f"{where}: column {shown(name)!r} is empty or holds a group that is not in the plan",
            "Give every row a group; submit the job again if the data changed.",
        )
    return np.asarray(place.cast(pa.int64()))


def _column(table: pa.Table, name: str, origin: Origin) -> Any:
    """Return the one column called `name` as one Arrow array."""
    if (found := table.schema.names.count(name)) != 1:
        raise SchemaMismatch(
            f"{origin.name}: {found} columns are called {shown(name)!r}, 1 is needed",
            "All files of a dataset hold the same columns.",
        )
    return _whole(table.column(name))


def _whole(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _flat(table: pa.Table, names: tuple[str, ...], origin: Origin) -> Tensor:
    """Put flat columns side by side, [R, E]."""
    stored = table.schema.names
    places = {name: place for place, name in enumerate(stored)}
    if len(places) < len(stored) or not places.keys() >= set(names):
        for name in names:
            _column(table, name, origin)  # which of them is missing, or there twice
    values_ER = np.empty((len(names), table.num_rows), np.float32)
    for values_R, name in zip(values_ER, names, strict=True):
        column = _whole(table.column(places[name]))
        # By far the most common; with hundreds of columns, microseconds count.
        if column.type == FLOAT32 and not column.null_count:
            values_R[:] = column.to_numpy()
        else:
            values_R[:] = _float32(_numbers(column, name, origin)).numpy()
    # Stacked, then transposed: torch does that in tiles, ten times faster than writing column by column.
    return torch.from_numpy(values_ER).t().contiguous()


def _decoded(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _text(column: Any) -> Any:
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _binary(column: Any, name: str, features: Features, origin: Origin) -> Tensor:
    """Reinterpret fixed-size binary values as little-endian numbers, [R, E]."""
    column = _decoded(column)
    dtype = np.dtype(features.dtype).newbyteorder("<")
    width = prod(features.shape) * dtype.itemsize
    if not pa.types.is_fixed_size_binary(column.type) or column.type.byte_width != width:
        raise SchemaMismatch(
            f"{origin.name}: column {shown(name)!r} is {column.type}, expected fixed_size_binary[{width}]:"
            f" {features.dtype} of shape {list(features.shape)}",
            "Set data.shape (and the file's dtype) to what one row holds.",
        )
    if column.null_count:
        raise _null(origin.at(_first_null(column)), name)
    count = len(column) * prod(features.shape)
    values = pa.Array.from_buffers(
        pa.from_numpy_dtype(dtype),
        count,
        [None, column.buffers()[1]],
        0,
        column.offset * prod(features.shape),
    )
    return _float32(values).view(len(column), prod(features.shape))


def _list(column: Any, name: str, features: Features, origin: Origin) -> Tensor:
    """Flatten lists that all have E elements, [R, E]."""
    column, length = _decoded(column), prod(features.shape)
    kind = pa.types
    if not (
        kind.is_fixed_size_list(column.type) or kind.is_list(column.type) or kind.is_large_list(column.type)
    ):
        raise SchemaMismatch(
            f"{origin.name}: column {shown(name)!r} is {column.type}, expected a list of {length} numbers",
            "All files of a dataset hold the same types.",
        )
    if column.null_count:
        raise _null(origin.at(_first_null(column)), name)
    if kind.is_fixed_size_list(column.type):
        size = column.type.list_size
        first, bad_rows = column.offset * size, np.arange(len(column) if size != length else 0)
        found = size
    else:
        offsets = np.asarray(column.offsets)
        lengths = np.diff(offsets)
        bad_rows = np.flatnonzero(lengths != length)
        first = int(offsets[0]) if len(offsets) else 0
        found = int(lengths[bad_rows[0]]) if len(bad_rows) else length
    if len(bad_rows):
        raise SchemaMismatch(
            f"{origin.at(int(bad_rows[0]))}: the list in {shown(name)!r} has {found} elements,"
            f" expected {length}",
            f"One row has shape {list(features.shape)}; every list needs {length} elements.",
        )
    values = _decoded(column.values).slice(first, len(column) * length)
    if values.null_count:
        element = _first_null(values)
        raise _null(origin.at(element // length), name, element % length)
    _expect_number(values, name, origin)
    return _float32(values).view(len(column), length)


def _numbers(column: Any, name: str, origin: Origin) -> Any:
    """Return a flat column as an Arrow array of numbers without nulls."""
    column = _decoded(column)
    _expect_number(column, name, origin)
    if column.null_count:
        raise _null(origin.at(_first_null(column)), name)
    return column


def _float32(values: Any) -> Tensor:
    """Return Arrow numbers as float32 [N]; float32 itself is shared, never copied."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if len(values) == 0:
        return torch.empty(0, dtype=torch.float32)
    return from_dlpack(values).to(torch.float32)


def _expect_number(values: Any, name: str, origin: Origin) -> None:
    kind = pa.types
    if not (kind.is_floating(values.type) or kind.is_integer(values.type) or kind.is_boolean(values.type)):
        raise SchemaMismatch(
            f"{origin.name}: column {shown(name)!r} holds {values.type}, which is not a number",
            "Features are floats or integers; name the numeric columns in data.features.",
        )


def _first_null(column: Any) -> int:
    return int(pc.index(column.is_null(), pa.scalar(True)).as_py())


def _null(where: str, name: str, element: int | None = None) -> SchemaMismatch:
    inside = "" if element is None else f", element {element}"
    return SchemaMismatch(
        f"{where}: column {shown(name)!r}{inside} is null", "Fill or drop missing values before training."
    )
