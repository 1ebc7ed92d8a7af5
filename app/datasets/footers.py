"""What a Parquet footer says, checked: row groups, columns, our own metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from app.datasets.errors import BadColumnName, BadMetadata, BadTimestamp, DataError, SchemaMismatch
from app.datasets.parquet import (
    FooterBytes,
    open_parquet,
    read_footer_bytes,
    reading,
    refuse_encrypted_columns,
)
from app.datasets.places import Place, S3Path
from app.errors import shown
from app.jobs.config import ClassNames

MAX_NAME = 256
MAX_METADATA_BYTES = 1 << 20
MAX_FAULTS = 10
METADATA_KEY = b"saimp"

Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
]


class Metadata(BaseModel):
    """The schema key `saimp`: what a dataset says about itself. Unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    version: int = 1
    dtype: Dtype | None = None
    shape: (
        Annotated[list[Annotated[int, Field(ge=1, lt=2**31)]], Field(min_length=1, max_length=4)] | None
    ) = None
    classes: ClassNames | None = None
    horizon_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    build: JsonValue = None


@dataclass(frozen=True, slots=True)
class Footer:
    """One file's footer. row_groups: rows in each."""

    name: str
    path: Place
    content: FooterBytes
    row_groups: tuple[int, ...]
    schema: pa.Schema
    metadata: Metadata | None

    @property
    def rows(self) -> int:
        return sum(self.row_groups)

    @property
    def types(self) -> dict[str, Any]:
        """Column name -> Arrow type, dictionaries as their values."""
        return {name: decoded_type(self.schema.field(name).type) for name in self.schema.names}


def decoded_type(kind: Any) -> Any:
    """The type of a column's values: a dictionary is only an encoding."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def read_footer(path: Place, name: str) -> Footer:
    """Read and check one footer. Raises the DataErrors of a file that cannot be used."""
    if isinstance(path, S3Path):
        with reading(path, name):
            path = path.pin()
    content = read_footer_bytes(path, name)
    with open_parquet(path, name) as file:
        refuse_encrypted_columns(file, content, name)
        schema = file.schema_arrow
        _check_names(schema.names, name)
        found = file.metadata
        # Never found.row_group(i).column(j): on a damaged footer it aborts the process (pyarrow 26).
        return Footer(
            name=name,
            path=path,
            content=content,
            row_groups=tuple(found.row_group(i).num_rows for i in range(found.num_row_groups)),
            schema=schema.remove_metadata(),
            metadata=_metadata(schema.metadata or {}, name),
        )


def check_same_schema(footers: Sequence[Footer], timestamp: str) -> None:
    """Demand the same columns, types and metadata of all files; their order is free.

    Raises SchemaMismatch (BadTimestamp for the timestamp column) naming the first file that differs, and how.
    """
    first, expected = footers[0], footers[0].types
    for other in footers[1:]:
        if other.schema.equals(first.schema) and other.metadata == first.metadata:
            continue
        found = other.types
        if timestamp in found and timestamp in expected and found[timestamp] != expected[timestamp]:
            raise BadTimestamp(
                f"{shown(timestamp)!r} is {expected[timestamp]} in {shown(first.name)}"
                f" but {found[timestamp]} in {shown(other.name)}.",
                "Write all files with the same unit and time zone.",
            )
        differences = _differences(expected, found)
        if differences:
            raise SchemaMismatch(
                f"{shown(other.name)} differs from {shown(first.name)}: " + "; ".join(differences) + ".",
                "All files of a dataset have the same columns; narrow data.path or rewrite the file.",
            )
        _check_same_metadata(first, other)


def _check_same_metadata(first: Footer, other: Footer) -> None:
    ours, theirs = first.metadata or Metadata(), other.metadata or Metadata()
    for key in ("dtype", "shape", "classes", "horizon_s"):
        if getattr(ours, key) != getattr(theirs, key):
            raise SchemaMismatch(
                f"{shown(other.name)} says {key} = {shown(getattr(theirs, key))}, {shown(first.name)}"
                f" says {shown(getattr(ours, key))}.",
                "Build all files of a dataset in one go, or narrow data.path.",
            )


def _differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    missing = [f"column {shown(name)!r} is missing" for name in expected if name not in found]
    extra = [f"column {shown(name)!r} is extra" for name in found if name not in expected]
    types = [
        f"column {shown(name)!r} is {shown(found[name])} instead of {shown(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    return (missing + extra + types)[:5]


def _check_names(names: Sequence[str], file: str) -> None:
    seen: set[str] = set()
    faults: list[DataError] = []
    for name in names:
        wrong = (
            "is empty"
            if not name
            else f"is longer than {MAX_NAME} characters"
            if len(name) > MAX_NAME
            else "has characters that cannot be printed"
            if not name.isprintable()
            else "has a dot, which Parquet reads as a nested field"
            if "." in name
            else "appears twice"
            if name in seen
            else None
        )
        seen.add(name)
        if wrong and len(faults) < MAX_FAULTS:
            faults.append(
                BadColumnName(f"{shown(file)}: the column name {shown(name)!r} {wrong}.", "Rename it.")
            )
    if faults:
        raise DataError.of(faults)


def _metadata(raw: dict[bytes, bytes], name: str) -> Metadata | None:
    text = raw.get(METADATA_KEY)
    if text is None:
        return None
    hint = "Build the dataset again, or remove the key and set data.shape, classes and horizon_s in the job."
    if len(text) > MAX_METADATA_BYTES:
        raise BadMetadata(f"{shown(name)}: its saimp metadata has {len(text):,} bytes.", hint)
    try:
        # Strict JSON mode reads 60 as a float too.
        return Metadata.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(str(part) for part in problem["loc"]) or "the whole"
        raise BadMetadata(
            f"{shown(name)}: its saimp metadata are malformed at {shown(where)}:"
            f" {shown(problem['msg'].removeprefix('Value error, '), 96)}.",
            hint,
        ) from error
