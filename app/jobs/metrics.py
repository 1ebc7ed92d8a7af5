"""What a job has measured so far: rows behind a cursor, in columns, thinned on request."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from app.errors import JobNotFound, ServiceError
from app.jobs.scores import scores
from app.jobs.tables import batch_row, epoch_row, event, job, system_row


class CursorAhead(ServiceError):
    """The cursor is ahead of the job; it comes from another database."""

    status, code = 422, "bad_cursor"


Scope = Literal["epoch", "batch", "system"]
SCOPES: tuple[Scope, ...] = ("epoch", "batch", "system")

BATCH_COLUMNS = ("step", "epoch", "batch", "loss", "accuracy", "lr", "grad_norm", "time")
SYSTEM_COLUMNS = (
    "time",
    "ram_used",
    "ram_total",
    "process_rss",
    "cpu_percent",
    "vram_used",
    "vram_total",
    "vram_process",
    "vram_torch_peak",
    "gpu_percent",
    "gpu_temperature",
)
_EPOCH_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "best",
    "lr",
    "duration_s",
    "samples_per_s",
    "ece",
    "confusion",
    "ram_peak",
    "vram_peak",
    "skipped_steps",
)


# Rows of a scope in one answer, when nothing thins them; the cursor leads on.
PAGE_ROWS: dict[Scope, int] = {"epoch": 1_000, "batch": 10_000, "system": 10_000}


@dataclass(frozen=True, slots=True)
class Metrics:
    """Rows with a sequence number above the cursor. batches and systems are columns; epochs are rows."""

    status: str
    epochs: list[dict[str, Any]]
    batches: dict[str, list[Any]]
    systems: dict[str, list[Any]]
    rewinds: list[dict[str, int]]
    seq: int  # the cursor to go on from
    has_more: bool  # rows of the asked scopes lie behind it already

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured, and nothing taken back, since the cursor."""
        return not (self.epochs or self.batches["epoch"] or self.systems["time"] or self.rewinds)


def since(
    connection: sa.Connection,
    job_id: str,
    *,
    after: int | None = None,
    scopes: Collection[Scope] = SCOPES,
    max_points: int | None = None,
    classes: Sequence[str] | None = None,
) -> Metrics:
    """Read what a job has measured behind sequence number `after` (null: from the start), one snapshot.

    max_points thins batches and systems: of each stretch the lowest and the highest value stay.
    classes name the keys of `per_class`; null = class numbers.
    Raises JobNotFound, and CursorAhead when the job has not come as far as `after`.
    """
    found = connection.execute(sa.select(job.c.seq, job.c.status).where(job.c.id == job_id)).one_or_none()
    if found is None:
        raise JobNotFound
    behind = after or 0
    if behind > found.seq:
        raise CursorAhead
    upto = found.seq
    for scope in scopes:
        if scope == "epoch" or max_points is None:
            upto = min(upto, _end_of_page(connection, scope, job_id, behind, upto))
    stretch = _Stretch(connection, job_id, behind, upto, max_points)
    return Metrics(
        status=found.status,
        epochs=_epochs(stretch, classes) if "epoch" in scopes else [],
        batches=stretch.columns(batch_row, BATCH_COLUMNS, "loss", is_read="batch" in scopes),
        systems=stretch.columns(system_row, SYSTEM_COLUMNS, "process_rss", is_read="system" in scopes),
        rewinds=_rewinds(stretch) if after is not None else [],
        seq=upto,
        has_more=upto < found.seq,
    )


_TABLES: dict[Scope, sa.Table] = {"epoch": epoch_row, "batch": batch_row, "system": system_row}


def _end_of_page(connection: sa.Connection, scope: Scope, job_id: str, behind: int, last: int) -> int:
    table = _TABLES[scope]
    ends = connection.execute(
        sa.select(table.c.seq)
        .where(table.c.job_id == job_id, table.c.seq > behind)
        .order_by(table.c.seq)
        .offset(PAGE_ROWS[scope] - 1)
        .limit(2)
    ).scalars()
    match ends.all():
        case [end, _]:
            return int(end)
        case _:  # a full page with nothing behind it is the last one
            return last


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The rows of a job with behind < seq <= upto. In sequence order rows are in training order too."""

    connection: sa.Connection
    job_id: str
    behind: int
    upto: int
    max_points: int | None

    def within(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return sa.and_(table.c.job_id == self.job_id, table.c.seq > self.behind, table.c.seq <= self.upto)

    def columns(
        self, table: sa.Table, names: Sequence[str], by: str, *, is_read: bool
    ) -> dict[str, list[Any]]:
        """Read a table as columns, thinned by the extremes of the column `by`."""
        rows: Sequence[sa.Row[Any]] = ()
        if is_read:
            query = sa.select(*(table.c[name] for name in names)).where(self.within(table))
            if self.max_points is not None:
                count = self._count(table)
                if count > self.max_points:
                    query = query.where(table.c.seq.in_(self._extremes(table, by, count, self.max_points)))
            rows = self.connection.execute(query.order_by(table.c.seq)).all()
        return {name: [row[place] for row in rows] for place, name in enumerate(names)}

    def _count(self, table: sa.Table) -> int:
        counted = sa.select(sa.func.count()).select_from(table).where(self.within(table))
        return int(self.connection.execute(counted).scalar_one())

    def _extremes(self, table: sa.Table, by: str, count: int, max_points: int) -> list[int]:
        """Choose the first, the last, and the lowest and highest row of each stretch between.

        Streams (seq, value): memory grows with the points kept, not with the rows.
        """
        stretches = max(0, (max_points - 2) // 2)
        lowest: dict[int, tuple[float, int]] = {}
        highest: dict[int, tuple[float, int]] = {}
        first = last = 0
        query = sa.select(table.c.seq, table.c[by]).where(self.within(table)).order_by(table.c.seq)
        rows = self.connection.execute(query, execution_options={"yield_per": 10_000})
        for number, (seq, value) in enumerate(rows):
            first, last = first or seq, seq
            if value is None:
                continue
            place = number * stretches // count
            if place not in lowest or value < lowest[place][0]:
                lowest[place] = value, seq
            if place not in highest or value > highest[place][0]:
                highest[place] = value, seq
        kept = {seq for ends in (lowest, highest) for _, seq in ends.values()} if stretches else set()
        return sorted(kept | {first, last})


def _epochs(stretch: _Stretch, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    columns = [epoch_row.c[name] for name in _EPOCH_COLUMNS]
    rows = stretch.connection.execute(
        sa.select(*columns).where(stretch.within(epoch_row)).order_by(epoch_row.c.epoch)
    )
    return [{**row._mapping, **_scores(row.confusion, classes)} for row in rows]


def _scores(confusion: Any, classes: Sequence[str] | None) -> dict[str, Any]:
    found = scores(confusion, classes)
    return {name: found[name] for name in ("macro_f1", "balanced_accuracy", "mcc", "per_class")}


def _rewinds(stretch: _Stretch) -> list[dict[str, int]]:
    resumed = stretch.connection.execute(
        sa.select(event.c.data).where(stretch.within(event), event.c.kind == "resumed").order_by(event.c.seq)
    ).scalars()
    return [{"epoch": data["epoch"], "batch": data["batch"]} for data in resumed]
