"""Where the features of a row are: layout, columns, stored type, shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from app.datasets.errors import SchemaMismatch, UnsupportedFeature
from app.datasets.footers import Metadata, decoded_type
from app.errors import shown
from app.jobs.config import DataConfig

POINTER = "/data/features"
_FLOAT_OF_SIZE = {2: "float16", 4: "float32", 8: "float64"}


@dataclass(frozen=True, slots=True)
class Features:
    """How the features of a row are stored.

    layout: "binary" = one fixed-size binary column, little-endian `dtype`;
            "list" = one fixed-size list or list column; "columns" = one numeric column each.
    dtype: the NumPy name of the stored element type, e.g. "float32".
    shape: of one row, e.g. (4, 128); its product is the number of elements.
    """

    layout: Literal["binary", "list", "columns"]
    columns: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]


def resolve_features(
    types: Mapping[str, Any],
    data: DataConfig,
    metadata: Metadata,
    roles: frozenset[str],
    first_length: Callable[[str], int],
) -> Features:
    """Settle `data.features` and `data.shape` against the columns.

    types: column -> Arrow type; roles: columns that are no features; first_length: elements of the first
    row of a list column. Raises SchemaMismatch or UnsupportedFeature, pointing at the field.
    """
    names = _names(types, data.features, roles)
    if isinstance(names, str):
        kind = types[names]
        if pa.types.is_fixed_size_binary(kind):
            return _binary(names, kind.byte_width, data, metadata)
        if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
            dtype = _dtype(names, decoded_type(kind.value_type))
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else None
            shape = _shape(data, metadata, size, lambda: first_length(names), f"Column {shown(names)!r}")
            return Features("list", (names,), dtype, shape)
    columns = (names,) if isinstance(names, str) else names
    dtypes = [np.dtype(_dtype(name, types[name])) for name in columns]
    shape = _shape(data, metadata, len(columns), lambda: len(columns), f"{len(columns)} columns")
    return Features("columns", columns, np.result_type(*dtypes).name, shape)


def _names(
    types: Mapping[str, Any], wanted: str | list[str] | None, roles: frozenset[str]
) -> str | tuple[str, ...]:
    if wanted is None and "features" in types and "features" not in roles:
        return "features"
    if wanted is None:
        numeric = tuple(name for name, kind in types.items() if name not in roles and _is_number(kind))
        if not numeric:
            raise SchemaMismatch(
                f"There is no column 'features' and no numeric column to use; found {listed(types)}.",
                "Name the feature column or columns in data.features.",
                pointer=POINTER,
            )
        return numeric
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name not in types:
            raise SchemaMismatch(
                f"There is no column {shown(name)!r}; found {listed(types)}.",
                "Name existing columns in data.features.",
                pointer=POINTER,
            )
        if name in roles:
            raise SchemaMismatch(
                f"Column {shown(name)!r} is a time, label or group: as a feature it would tell the answer.",
                "Leave it out of data.features.",
                pointer=POINTER,
            )
    return wanted if isinstance(wanted, str) else tuple(wanted)


def listed(types: Mapping[str, Any], limit: int = 8) -> str:
    """Name some columns with their types for a message."""
    known = [f"{shown(name, 32)} ({shown(kind, 32)})" for name, kind in list(types.items())[:limit]]
    more = f" and {len(types) - limit} more" if len(types) > limit else ""
    return ", ".join(known) + more if known else "no columns"


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _dtype(name: str, kind: Any) -> str:
    if isinstance(kind, pa.BaseExtensionType):
        raise UnsupportedFeature(
            f"Column {shown(name)!r} has the extension type {shown(kind)}.",
            "Store plain numbers, lists or fixed-size binary.",
            pointer=POINTER,
        )
    if pa.types.is_nested(kind):
        raise UnsupportedFeature(
            f"Column {shown(name)!r} is nested: {shown(kind)}.",
            "Store one flat list for each row and give its shape in data.shape.",
            pointer=POINTER,
        )
    if not (_is_number(kind) or pa.types.is_boolean(kind)):
        raise SchemaMismatch(
            f"Column {shown(name)!r} holds {shown(kind)}; features are integers or floats.",
            "Name numeric columns, one list column or one fixed-size binary column in data.features.",
            pointer=POINTER,
        )
    return "bool" if pa.types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype()).name


def _shape(
    data: DataConfig, metadata: Metadata, size: int | None, measure: Callable[[], int], what: str
) -> tuple[int, ...]:
    """data.shape, else the dataset's own where it fits, else one dimension.

    size: elements of a row where the type tells; measure: finds them where it does not.
    """
    if data.shape is not None:
        wanted, pointer = tuple(data.shape), "/data/shape"
    elif metadata.shape is not None:
        wanted, pointer = tuple(metadata.shape), "/data/features"
    else:
        return (measure() if size is None else size,)
    if size is None or prod(wanted) == size:
        return wanted
    # The dataset speaks of its own feature column; another choice of the user is simply a row of numbers.
    if data.shape is None and data.features not in (None, "features"):
        return (size,)
    raise SchemaMismatch(
        f"{what} of {size} elements a row cannot have the shape {list(wanted)}, which has {prod(wanted)}.",
        "Set data.shape to a shape with that many elements.",
        pointer=pointer,
    )


def _binary(name: str, width: int, data: DataConfig, metadata: Metadata) -> Features:
    wanted = data.shape or metadata.shape
    dtype = metadata.dtype
    if dtype is None and wanted is not None:
        dtype = _FLOAT_OF_SIZE.get(width // prod(wanted)) if width % prod(wanted) == 0 else None  # type: ignore[assignment]
        if dtype is None:
            raise SchemaMismatch(
                f"Column {shown(name)!r} has {width} bytes a row: no float of 2, 4 or 8 bytes"
                f" fits {list(wanted)}.",
                "Set data.shape to what one row holds.",
                pointer="/data/shape",
            )
    if dtype is None:
        raise SchemaMismatch(
            f"Column {shown(name)!r} is {width} bytes a row of unknown type: the file has no saimp metadata.",
            "Set data.shape, e.g. [4, 128]; the type follows from the bytes of an element.",
            pointer="/data/shape",
        )
    itemsize = np.dtype(dtype).itemsize
    if width == 0 or width % itemsize:
        raise SchemaMismatch(f"Column {shown(name)!r} has {width} bytes a row, not a multiple of {dtype}.")
    size = width // itemsize
    shape = _shape(data, metadata, size, lambda: size, f"Column {shown(name)!r} ({dtype})")
    return Features("binary", (name,), dtype, shape)
