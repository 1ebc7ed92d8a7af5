"""Resume checkpoints: which count, where an attempt goes on, what goes when it does.

A position stands before a step, or behind the last step of an epoch whose validation is pending. What lies
beyond it is deleted in the transaction that writes the event `resumed`; replayed rows are new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa

from app.jobs.queue.door import Door, held
from app.jobs.queue.records import Checkpoint, LostJob, Row
from app.jobs.tables import batch_row, checkpoint, epoch_row, job

_BEST = ("best_epoch", "best_val_loss", "best_val_accuracy", "best_file", "best_sha256", "best_bytes")


class Resuming(Door):
    def restart(self, job_id: str, attempt: int) -> None:
        """Begin an attempt from zero. Raises LostJob."""
        self.resume_at(job_id, attempt, None)

    def resume_at(
        self, job_id: str, attempt: int, at: Checkpoint | None, *, best_file: str | None = None
    ) -> None:
        """Begin an attempt at a checkpoint (null: at zero): rows beyond it go, the best is as it was.

        best_file: where that best lies now, below the job's folder; null = where it was. At a checkpoint of
        another job (a retry) that job's rows up to it are copied, and its best is looked for under the same
        name in the folder of this attempt. Raises LostJob.
        """
        with self.database.writing("resume_at") as connection:
            row = _owned(connection, job_id, attempt)
            is_own = at is not None and at.job_id == job_id
            for table in (batch_row, epoch_row):
                gone = table.c.job_id == job_id
                if is_own:
                    gone &= ~_before(table, at)  # type: ignore[arg-type]
                connection.execute(table.delete().where(gone))
            connection.execute(
                checkpoint.delete().where(
                    checkpoint.c.job_id == job_id, checkpoint.c.seq > at.seq if at and is_own else sa.true()
                )
            )
            if at is not None and not is_own:
                _copy(connection, row, at)
                if best_file is None and at.best_file is not None:
                    best_file = f"attempts/{attempt}/{PurePosixPath(at.best_file).name}"
            if best_file is not None:
                _rename_best(connection, job_id, best_file)
            self._note(
                connection,
                job_id,
                [("resumed", _position(at))],
                **_progress(row, at),
                test=None,
                **_best_of(connection, row),
            )
            if row.is_promoted:
                self._crown(connection)

    def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """List the checkpoints of a job that count, the newest first. Raises JobNotFound."""
        with self.database.reading() as connection:
            self._get(connection, job_id)
            return [_as_checkpoint(connection, row) for row in connection.execute(_of(job_id))]

    def discard_checkpoint(
        self, job_id: str, attempt: int, corrupt: Checkpoint, why: str
    ) -> Checkpoint | None:
        """Let a checkpoint that cannot be read no longer count; return the next older one.

        Raises LostJob.
        """
        with self.database.writing("discard_checkpoint") as connection:
            row = _owned(connection, job_id, attempt)
            values: dict[str, Any] = {}
            if corrupt.job_id == job_id:
                connection.execute(
                    checkpoint.delete().where(checkpoint.c.job_id == job_id, checkpoint.c.seq == corrupt.seq)
                )
            else:
                values["inherits_seq"] = corrupt.seq - 1
            told = {"name": corrupt.name, "epoch": corrupt.epoch, "batch": corrupt.batch, "message": why}
            self._note(connection, job_id, [("checkpoint_discarded", told)], **values)
            return newest_checkpoint(connection, _owned(connection, row.id, attempt))

    def prune_checkpoints(self, job_id: str, attempt: int, keep_last: int) -> Sequence[str]:
        """Let only the newest checkpoints count; return the names of the files to delete.

        Also once the attempt has ended the job. Raises LostJob when there is a newer attempt.
        """
        with self.database.writing("prune_checkpoints") as connection:
            if self._get(connection, job_id, is_locked=True).attempt != attempt:
                raise LostJob(job_id)
            old = connection.execute(_of(job_id).offset(keep_last)).all()
            if old:
                connection.execute(
                    checkpoint.delete().where(checkpoint.c.job_id == job_id, checkpoint.c.seq <= old[0].seq)
                )
            return [row.name for row in old]

    def checkpoint_files(self, job_ids: Sequence[str]) -> frozenset[str]:
        """Name the checkpoints of some jobs that count, each below the folder of its job: `<job>/<name>`."""
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(checkpoint.c.job_id, checkpoint.c.name).where(checkpoint.c.job_id.in_(job_ids))
            )
            return frozenset(f"{row.job_id}/{row.name}" for row in rows)

    def kept_files(self, job_id: str) -> frozenset[str]:
        """Name the files of a job that count: checkpoints, the best, the bests a resume may go back to."""
        with self.database.reading() as connection:
            row = self._get(connection, job_id)
            kept = {row.best_file}
            for saved in connection.execute(_of(job_id)).all():
                best = _as_checkpoint(connection, saved).best_file
                kept |= {saved.name, best}
                if best is not None:  # it may have been linked elsewhere since; the attempt looks beside
                    kept.add(str(PurePosixPath(saved.name).with_name(PurePosixPath(best).name)))
            return frozenset(name for name in kept if name is not None)


def newest_checkpoint(connection: sa.Connection, row: Row) -> Checkpoint | None:
    """Find where a job would go on: its newest checkpoint, else that of the job it retries; null = zero."""
    found = connection.execute(_of(row.id).limit(1)).one_or_none()
    if found is None and row.inherits_id is not None:
        found = connection.execute(
            _of(row.inherits_id).where(checkpoint.c.seq <= row.inherits_seq).limit(1)
        ).one_or_none()
    return None if found is None else _as_checkpoint(connection, found)


def _of(job_id: str) -> sa.Select[Any]:
    return sa.select(checkpoint).where(checkpoint.c.job_id == job_id).order_by(checkpoint.c.seq.desc())


def _as_checkpoint(connection: sa.Connection, row: Row) -> Checkpoint:
    best = _last_best(connection, row.job_id, before_epoch=row.epoch)
    return Checkpoint(
        **row._mapping,
        best_file=best.best_file if best else None,
        best_sha256=best.best_sha256 if best else None,
    )


def _last_best(connection: sa.Connection, job_id: str, *, before_epoch: int | None = None) -> Row | None:
    query = sa.select(epoch_row).where(epoch_row.c.job_id == job_id, epoch_row.c.best)
    if before_epoch is not None:
        query = query.where(epoch_row.c.epoch < before_epoch)
    return connection.execute(query.order_by(epoch_row.c.epoch.desc()).limit(1)).one_or_none()


def _owned(connection: sa.Connection, job_id: str, attempt: int) -> Row:
    row = connection.execute(sa.select(job).where(held(job_id, attempt)).with_for_update()).one_or_none()
    if row is None:
        raise LostJob(job_id)
    return row


def _before(table: sa.Table, at: Checkpoint) -> sa.ColumnElement[bool]:
    """Whether a row was reported before a position. The row of its epoch was not: that is the last act."""
    earlier: sa.ColumnElement[bool] = table.c.epoch < at.epoch
    if table is epoch_row:
        return earlier
    return earlier | ((table.c.epoch == at.epoch) & (table.c.batch < at.batch))


def _copy(connection: sa.Connection, row: Row, at: Checkpoint) -> None:
    """Take over the rows of the job a retry goes on from, in their order."""
    last = max(
        connection.execute(
            sa.select(sa.func.coalesce(sa.func.max(table.c.seq), 0)).where(table.c.job_id == at.job_id)
        ).scalar_one()
        for table in (batch_row, epoch_row)
    )
    for table in (batch_row, epoch_row):
        taken = {"job_id": sa.literal(row.id), "seq": table.c.seq + row.seq}
        columns = [taken.get(column.name, column) for column in table.c]
        connection.execute(
            table.insert().from_select(
                [column.name for column in table.c],
                sa.select(*columns).where(table.c.job_id == at.job_id, _before(table, at)),
            )
        )
    connection.execute(job.update().where(job.c.id == row.id).values(seq=job.c.seq + last))
    # Of the files only the best at the position comes along.
    connection.execute(epoch_row.update().where(epoch_row.c.job_id == row.id).values(best_file=None))


def _rename_best(connection: sa.Connection, job_id: str, name: str) -> None:
    best = _last_best(connection, job_id)
    if best is not None:
        connection.execute(
            epoch_row.update()
            .where(epoch_row.c.job_id == job_id, epoch_row.c.epoch == best.epoch)
            .values(best_file=name)
        )


def _best_of(connection: sa.Connection, row: Row) -> dict[str, Any]:
    """Say what the job's best is, by the rows that are left."""
    best = _last_best(connection, row.id)
    if best is not None and best.best_file is not None:
        values = (
            best.epoch,
            best.val_loss,
            best.val_accuracy,
            best.best_file,
            best.best_sha256,
            best.best_bytes,
        )
        return dict(zip(_BEST, values, strict=True))
    if best is not None and best.epoch == row.best_epoch:
        return {}  # its file is named by the job alone
    return dict.fromkeys(_BEST)


def _progress(row: Row, at: Checkpoint | None) -> dict[str, int | None]:
    """Say how far a job is at a checkpoint: between two epochs, all of the one before it is trained."""
    if at is None:
        return {"epoch": None, "batch": None}
    is_between = at.epoch > 1 and at.batch == 0 and not at.is_epoch_trained
    if is_between and row.batches is not None:
        return {"epoch": at.epoch - 1, "batch": row.batches}
    return {"epoch": at.epoch, "batch": at.batch}


def _position(at: Checkpoint | None) -> dict[str, Any]:
    if at is None:
        return {"epoch": 1, "batch": 0}
    return {
        "epoch": at.epoch,
        "batch": at.batch,
        "step": at.step,
        "is_epoch_trained": at.is_epoch_trained,
        "checkpoint": at.name,
    }
