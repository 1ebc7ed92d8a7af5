"""What a dataset is: its files in time order, its columns, its shape, its fingerprint. Footers only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pyarrow as pa

from app.datasets.catalog import FoundFile, find_files
from app.datasets.errors import (
    DataError,
    LabelOutOfRange,
    NoRows,
    RowGroupTooLarge,
    SchemaMismatch,
    check_deadline,
)
from app.datasets.features import Features, listed, resolve_features
from app.datasets.footers import MAX_FAULTS, Footer, Metadata, check_same_schema, read_footer
from app.datasets.order import Ordered, order_by_time
from app.datasets.pages import refuse_large_pages, refuse_long_lists
from app.datasets.parquet import FooterBytes, has_page_checksums, read_columns, read_first
from app.datasets.places import Place, Root, S3Path, each
from app.datasets.times import TimeUnit
from app.datasets.values import decoded_row_bytes
from app.errors import shown
from app.jobs.config import DataConfig

__all__ = ["DataFile", "Dataset", "Features", "TimeUnit", "open_dataset"]

TINY_ROW_GROUP, MANY_ROW_GROUPS = 1000, 1000
STREAM_BUDGET = 512 * 2**20
# A page and its decoded values are held at once, beside a block that is in use.
PAGES_IN_BUDGET = 4
# Zeros compress a thousandfold or more; that a gigabyte of rows is ten thousand times its file is no data.
BOMB_BYTES, BOMB_RATIO = 2**30, 10_000

Warnings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file: its place in content order is its place in `Dataset.files`."""

    name: str  # relative to the data root, POSIX
    path: Any  # a Place
    row_groups: tuple[int, ...]  # rows in each

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as its footers tell it; every null of `data` that footers can settle is settled."""

    files: tuple[DataFile, ...]  # ordered by content (first timestamp); none of them empty
    timestamp: str
    timestamp_unit: TimeUnit  # of the stored integers, or of the Arrow timestamp
    features: Features
    label: str
    label_end: str | None
    group: str | None
    classes: tuple[str, ...] | None  # null: known only after the labels were read
    horizon_s: float
    fingerprint: str  # sha256 over the sorted (relative path, size, sha256 of footer)
    warnings: Warnings = ()  # (code, sentence)
    is_unit_detected: bool = False  # timestamps are plain integers: the unit is a guess, checked on reading
    # The schema key `saimp`. It holds lists, and datasets are keys of caches; the fingerprint covers it.
    metadata: Metadata | None = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def open_dataset(
    root: Root, data: DataConfig, *, deadline: float | None = None, budget_bytes: int = STREAM_BUDGET
) -> Dataset:
    """Read the footers of `data.path` and settle columns, shape, order and fingerprint.

    deadline: time.monotonic() after which PreflightTimeout is raised.
    budget_bytes: memory of the stream; what cannot be decoded in it is refused.
    Raises a DataError whose `problems` list everything found wrong.
    """
    footers = _read_footers(find_files(root, data.path, deadline=deadline), deadline)
    check_same_schema(footers, data.timestamp)
    filled = [footer for footer in footers if footer.rows]
    if not filled:
        raise NoRows(f"{shown(data.path)!r} has no rows in {len(footers)} file(s).", "Give a path with data.")
    metadata = filled[0].metadata or Metadata()
    roles = _resolve_roles(filled[0].types, data)
    features = _resolve_features(filled[0], data, metadata, roles, budget_bytes)
    for footer in filled:
        check_deadline(deadline)
        _refuse_bombs(footer, features, roles, budget_bytes)
    refuse_longer_lists(filled[0].path, filled[0].name, filled[0].content, features, filled[0].row_groups)
    _read_first_row(filled[0], features)
    ordered = order_by_time(filled, data.timestamp, data.group is not None, deadline, group=data.group)
    horizon_s = data.horizon_s if data.horizon_s is not None else metadata.horizon_s
    classes = data.classes or metadata.classes
    return Dataset(
        files=tuple(DataFile(f.name, f.path, f.row_groups) for f in ordered.footers),
        timestamp=data.timestamp,
        timestamp_unit=ordered.unit,
        features=features,
        label=data.label,
        label_end=roles.label_end,
        group=data.group,
        classes=tuple(classes) if classes else None,
        horizon_s=horizon_s or 0.0,
        fingerprint=_fingerprint(footers),
        warnings=tuple(_warnings(footers, ordered, roles, horizon_s, data)),
        is_unit_detected=ordered.is_detected,
        metadata=filled[0].metadata,
    )


@dataclass(frozen=True, slots=True)
class _Roles:
    """The columns that are no features."""

    label_end: str | None
    names: frozenset[str]


def _read_footers(found: Iterable[FoundFile], deadline: float | None) -> list[Footer]:
    def read(file: FoundFile) -> Footer | DataError:
        check_deadline(deadline)
        try:
            return read_footer(file.path, file.name)
        except DataError as fault:
            return fault

    footers: list[Footer] = []
    faults: list[DataError] = []
    found = list(found)
    with closing(each(read, found, is_remote=isinstance(found[0].path, S3Path))) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Footer):
                footers.append(outcome)
            else:
                faults.append(outcome)
            if len(faults) == MAX_FAULTS:
                break
    if faults:
        raise DataError.of(faults)
    return footers


def _resolve_roles(types: dict[str, Any], data: DataConfig) -> _Roles:
    """Check that timestamp, label, label_end and group exist and have the right types; all faults at once."""
    label_end = data.label_end or ("label_end" if "label_end" in types else None)
    if label_end in (data.timestamp, data.label, data.group):
        label_end = None  # only by default: the column called label_end already has another role
    expected = [
        ("timestamp", data.timestamp, "a timestamp or an integer"),
        ("label", data.label, "an integer class"),
        ("label_end", label_end, "a timestamp or an integer"),
        ("group", data.group, "text or an integer"),
    ]
    faults: list[DataError] = []
    for role, name, wanted in expected:
        if name is None:
            continue
        pointer = f"/data/{role}"
        if name not in types:
            faults.append(
                SchemaMismatch(
                    f"There is no {role} column {shown(name)!r}; found {listed(types)}.",
                    f"Set data.{role} to the name of {wanted} column.",
                    pointer=pointer,
                )
            )
        elif not _fits(role, types[name]):
            is_float_label = role == "label" and pa.types.is_floating(types[name])
            fault = LabelOutOfRange if is_float_label else SchemaMismatch
            faults.append(
                fault(
                    f"The {role} column {shown(name)!r} is {shown(types[name])}; expected {wanted}.",
                    "Store classes as integers 0..K-1." if role == "label" else "Convert the column.",
                    pointer=pointer,
                )
            )
    if faults:
        raise DataError.of(faults)
    return _Roles(label_end, frozenset(name for _, name, _ in expected if name is not None))


def _fits(role: str, kind: Any) -> bool:
    is_integer = bool(pa.types.is_integer(kind))
    if role == "label":
        return is_integer
    if role == "group":
        return is_integer or bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return is_integer or bool(pa.types.is_timestamp(kind))


def refuse_longer_lists(
    path: Place, name: str, content: FooterBytes, features: Features, row_groups: Sequence[int]
) -> None:
    """Refuse a file whose lists are far longer than planned, before decoding. Raises SchemaMismatch."""
    if features.layout == "list":
        refuse_long_lists(
            path, name, content, features.columns[0], row_groups, elements=prod(features.shape), limit=0
        )


def _resolve_features(
    footer: Footer, data: DataConfig, metadata: Metadata, roles: _Roles, budget_bytes: int
) -> Features:
    def first_length(column: str) -> int:
        refuse_long_lists(
            footer.path,
            footer.name,
            footer.content,
            column,
            footer.row_groups,
            elements=None,
            limit=budget_bytes // 8,
        )
        value = read_first(footer.path, footer.name, column, footer.row_groups)[0]
        if not value.is_valid or len(value) == 0:
            raise SchemaMismatch(
                f"{shown(footer.name)}, row 0: the list in {shown(column)!r} is missing or empty.",
                "Fill it, or set data.shape.",
                pointer="/data/features",
            )
        return len(value)

    return resolve_features(footer.types, data, metadata, roles.names, first_length)


def _refuse_bombs(footer: Footer, features: Features, roles: _Roles, budget_bytes: int) -> None:
    """Refuse what would not fit in memory, before any of it is decoded. Raises RowGroupTooLarge."""
    row_bytes = decoded_row_bytes(features) + 8 * len(roles.names)
    decoded = footer.rows * row_bytes
    if decoded > BOMB_BYTES and decoded > BOMB_RATIO * footer.content.size:
        raise RowGroupTooLarge(
            f"{shown(footer.name)} has {footer.content.size:,} bytes and claims {footer.rows:,} rows, which"
            f" are {decoded / 2**30:,.0f} GiB when decoded.",
            "Write the file again from its source; if the rows are real, they hold nothing.",
        )
    limit = budget_bytes // PAGES_IN_BUDGET
    giant = {index for index, rows in enumerate(footer.row_groups) if rows * row_bytes > limit}
    if giant:
        columns = frozenset(features.columns) | roles.names
        refuse_large_pages(footer.path, footer.name, footer.content, columns, giant, limit)


def _read_first_row(footer: Footer, features: Features) -> None:
    """Find out that the features can be decoded at all: codecs are known only then."""
    group = next(index for index, rows in enumerate(footer.row_groups) if rows)
    batches = read_columns(footer.path, footer.name, list(features.columns), row_groups=[group], batch_rows=1)
    with closing(batches):
        next(batches, None)


def _fingerprint(footers: Iterable[Footer]) -> str:
    """Name the content: sha256 over the sorted (relative path, size, sha256 of footer)."""
    lines = sorted(f"{f.name}\0{f.content.size}\0{f.content.sha256}\n" for f in footers)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _warnings(
    footers: list[Footer], ordered: Ordered, roles: _Roles, horizon_s: float | None, data: DataConfig
) -> Iterable[tuple[str, str]]:
    if ordered.is_detected:
        yield (
            "timestamp_unit_detected",
            f"{shown(data.timestamp)!r} holds integers; they are read as {ordered.unit} since 1970.",
        )
    if horizon_s is None and roles.label_end is None:
        yield (
            "no_horizon",
            "Neither a label_end column nor horizon_s says how far labels look ahead: 0 s is assumed, so"
            " labels that look ahead leak across the cuts. Set data.horizon_s.",
        )
    empty = [footer.name for footer in footers if not footer.rows]
    if empty:
        yield "empty_files", f"{len(empty)} file(s) without rows are left out, the first {shown(empty[0])}."
    groups = sum(len(footer.row_groups) for footer in footers)
    rows = sum(footer.rows for footer in footers)
    if groups > MANY_ROW_GROUPS and rows < groups * TINY_ROW_GROUP:
        yield (
            "tiny_row_groups",
            f"{groups:,} row groups of {rows / groups:.0f} rows each: reading costs about"
            f" {groups * 2e-4:.0f} s more for every pass. Write row groups of some thousand rows.",
        )
    first = ordered.footers[0]
    if not has_page_checksums(first.path):
        yield (
            "no_page_checksums",
            f"{shown(first.name)} has no page checksums, so a flipped bit goes unnoticed. Write it with them"
            " (pyarrow: write_page_checksum=True).",
        )
