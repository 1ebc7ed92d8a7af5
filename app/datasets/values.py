"""The features of rows as NumPy arrays, from Arrow columns that were checked row by row.

Shapes: N rows of a batch, E elements of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.datasets.errors import SchemaMismatch
from app.datasets.features import Features
from app.errors import shown

_FILL = "Fill or drop missing values before training."


def read_features(columns: Mapping[str, Any], features: Features, file: str, first_row: int) -> NDArray[Any]:
    """Return the features [N, E] in their stored type. Raises SchemaMismatch for nulls and wrong lengths."""
    if features.layout == "columns":
        stacked = [_numbers(columns[name], name, file, first_row) for name in features.columns]
        return np.stack(stacked, axis=1).astype(features.dtype, copy=False)
    (name,), size = features.columns, prod(features.shape)
    column = columns[name]
    if features.layout == "binary":
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        _refuse_nulls(column, name, file, first_row)
        values = np.frombuffer(column.buffers()[1], np.dtype(features.dtype).newbyteorder("<"))
        return values[column.offset * size : (column.offset + len(column)) * size].reshape(-1, size)
    return _lists(column, name, size, file, first_row)


def decoded_row_bytes(features: Features) -> int:
    """Memory of one decoded row, as stored."""
    return max(1, prod(features.shape) * np.dtype(features.dtype).itemsize)


def element_name(features: Features, element: int) -> str:
    """Name one element of a row for a message."""
    if features.layout == "columns":
        return shown(features.columns[element])
    place = [int(i) for i in np.unravel_index(element, features.shape)]
    return f"{shown(features.columns[0])}{place}"


def _numbers(column: Any, name: str, file: str, first_row: int) -> NDArray[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    _refuse_nulls(column, name, file, first_row)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _lists(column: Any, name: str, size: int, file: str, first_row: int) -> NDArray[Any]:
    _refuse_nulls(column, name, file, first_row)
    if pa.types.is_fixed_size_list(column.type):
        start = column.offset * size
    else:
        offsets = np.asarray(column.offsets)
        lengths = np.diff(offsets)
        wrong = np.flatnonzero(lengths != size)
        if wrong.size:
            raise SchemaMismatch(
                f"{shown(file)}, row {first_row + int(wrong[0])}: the list in {shown(name)!r} has"
                f" {int(lengths[wrong[0]])} elements, expected {size}.",
                "Every list needs as many elements as data.shape says.",
                pointer="/data/features",
            )
        start = int(offsets[0])
    values = column.values.slice(start, len(column) * size)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count:
        element = int(pc.index(values.is_null(), pa.scalar(True)).as_py())
        raise SchemaMismatch(
            f"{shown(file)}, row {first_row + element // size}: {shown(name)!r}, element {element % size}"
            " is missing.",
            _FILL,
            pointer="/data/features",
        )
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, size)


def _refuse_nulls(column: Any, name: str, file: str, first_row: int) -> None:
    if column.null_count:
        row = first_row + int(pc.index(column.is_null(), pa.scalar(True)).as_py())
        raise SchemaMismatch(
            f"{shown(file)}, row {row}: {shown(name)!r} is missing.", _FILL, pointer="/data/features"
        )
