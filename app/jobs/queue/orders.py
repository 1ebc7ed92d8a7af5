"""What users ask of a job: cancel, pause, resume, edit, move, delete; and of the queue: drain, open."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

import sqlalchemy as sa

from app.errors import IllegalTransition, InvalidRequest, Problem, StorageUnavailable
from app.jobs import champion
from app.jobs.config import JobRequest
from app.jobs.files import BEST_NAME
from app.jobs.queue.dependents import falling
from app.jobs.queue.door import Door, in_turn
from app.jobs.queue.records import PAUSED, IsChampion, JobInUse, Reason, Row
from app.jobs.queue.submitting import GAP
from app.jobs.states import FINAL, Status
from app.jobs.tables import checkpoint, gate, job

# What may be edited: it changes nothing of what is computed.
EDITABLE = ("name", "tags", "metadata", "priority", "not_before")
# Of these only a job that may still run has a use.
_OF_WAITING = ("priority", "not_before")


class Orders(Door):
    def cancel(self, job_id: str) -> tuple[Row, bool]:
        """Cancel a job: at once when it waits; else ask its worker. Returns (row, done).

        A repeated cancel changes nothing. Raises JobNotFound, IllegalTransition when it ended otherwise.
        """
        with self._ending("cancel", job_id) as connection:
            row = self._get(connection, job_id, is_locked=True)
            if row.status in (Status.QUEUED, Status.PAUSED):
                self._cancel(connection, row)
            elif row.status == Status.RUNNING:
                if row.cancel_requested_at is None:
                    self._note(connection, job_id, [("cancel_requested", {})], cancel_requested_at=self.now())
            elif row.status != Status.CANCELLED:
                raise IllegalTransition(f"{_over(row)}; it cannot be cancelled.")
            row = self._get(connection, job_id)
            return row, row.status == Status.CANCELLED

    def pause(self, job_id: str) -> tuple[Row, bool]:
        """Pause a job: at once when it waits; else ask its worker. Returns (row, done).

        A repeated pause changes nothing. Raises JobNotFound, IllegalTransition when it has ended or is about
        to be cancelled.
        """
        with self.database.writing("pause") as connection:
            row = self._get(connection, job_id, is_locked=True)
            if row.status == Status.QUEUED:
                self._pause(connection, row)
            elif row.status == Status.RUNNING:
                if row.cancel_requested_at is not None:
                    raise IllegalTransition("The job is being cancelled; it cannot be paused.")
                if row.pause_requested_at is None:
                    self._note(connection, job_id, [("pause_requested", {})], pause_requested_at=self.now())
            elif row.status != Status.PAUSED:
                raise IllegalTransition(f"{_over(row)}; it cannot be paused.")
            elif row.reason_code != PAUSED.code:  # else it would go on by itself
                told = {"status": Status.PAUSED, "code": PAUSED.code, "message": PAUSED.message}
                reason = {
                    "reason_code": PAUSED.code,
                    "reason_message": PAUSED.message,
                    "reason_hint": None,
                }
                self._note(connection, job_id, [("paused", told)], **reason)
            row = self._get(connection, job_id)
            return row, row.status == Status.PAUSED

    def resume(self, job_id: str) -> tuple[Row, bool]:
        """Let a paused job wait again, in its old place; take back a pause that was only asked for.

        A repeated resume changes nothing. Returns (row, done). Raises JobNotFound, IllegalTransition when the
        job has ended.
        """
        with self.database.writing("resume") as connection:
            row = self._get(connection, job_id, is_locked=True)
            if row.status in FINAL:
                raise IllegalTransition(
                    f"{_over(row)}; it cannot be resumed.",
                    "Clone it to train it again."
                    if row.status == Status.SUCCEEDED
                    else "Retry it: a new job goes on from its newest checkpoint.",
                )
            if row.status == Status.PAUSED:
                self._requeue(connection, row, Reason("none"), "unpaused")
            elif row.pause_requested_at is not None:
                self._note(connection, job_id, [("pause_withdrawn", {})], pause_requested_at=None)
            return self._get(connection, job_id), True

    def edit(self, job_id: str, request: JobRequest, names: Collection[str]) -> Row:
        """Change labels of a job to those of a request. Its priority changes, its place inside it stays.

        Raises JobNotFound, IllegalTransition for the priority or not_before of a job that has ended.
        """
        assert set(names) <= set(EDITABLE), names
        with self.database.writing("edit") as connection:
            row = self._get(connection, job_id, is_locked=True)
            body = request.model_dump(mode="json", include=set(names))
            changed = {name: value for name, value in body.items() if row.config[name] != value}
            if row.status in FINAL and (late := sorted(set(changed) & set(_OF_WAITING))):
                raise IllegalTransition(f"{_over(row)}; its {late[0]} cannot change.")
            if changed:
                columns = {name: getattr(request, name) for name in changed}
                self._note(
                    connection, job_id, [("edited", changed)], config={**row.config, **changed}, **columns
                )
            return self._get(connection, job_id)

    def promote(self, job_id: str) -> Row:
        """Make a job with a best the champion until another is promoted, or its promotion ends.

        A repeated promotion only sees to the file. Raises JobNotFound, IllegalTransition when there is no
        best, StorageUnavailable when the file cannot be put in place: then nothing has changed.
        """
        with self.database.writing("promote") as connection:
            self._lock_gate(connection)  # one promotion at a time
            row = self._get(connection, job_id, is_locked=True)
            if row.best_file is None:
                raise IllegalTransition("The job has no best checkpoint to promote.")
            before = connection.execute(sa.select(job).where(job.c.is_promoted, job.c.id != job_id)).all()
            for other in before:
                self._end_promotion(connection, other)
            if not row.is_promoted:
                told = {"sha256": row.best_sha256}
                self._note(connection, job_id, [("promoted", told)], is_promoted=True)
            self._see_to_file(connection)
            return self._get(connection, job_id)

    def end_promotion(self, job_id: str) -> Row:
        """Let the best of the comparable be the champion again. Of a job that is not promoted: no change.

        Raises JobNotFound, StorageUnavailable when the file cannot be put in place.
        """
        with self.database.writing("promote") as connection:
            self._lock_gate(connection)
            row = self._get(connection, job_id, is_locked=True)
            if row.is_promoted:
                self._end_promotion(connection, row)
                self._see_to_file(connection)
            return self._get(connection, job_id)

    def move(self, job_id: str, *, before: str | None = None, after: str | None = None) -> Row:
        """Put a waiting job right before or right after another one, whose priority it takes.

        Raises JobNotFound, InvalidRequest when there is no such neighbour, IllegalTransition when one of the
        two does not wait.
        """
        assert (before is None) != (after is None)
        neighbour_id = before if before is not None else after
        pointer = "/before" if before is not None else "/after"
        with self.database.writing("move") as connection:
            self._lock_gate(connection)
            row = self._get(connection, job_id, is_locked=True)
            neighbour = connection.execute(
                sa.select(job).where(job.c.id == neighbour_id).with_for_update()
            ).one_or_none()
            if neighbour is None:
                raise InvalidRequest(problems=[Problem(pointer, "job_not_found", "no job has this id")])
            if neighbour.id == row.id:
                raise InvalidRequest(problems=[Problem(pointer, "same_job", "must be another job")])
            for one in (row, neighbour):
                if one.status != Status.QUEUED:
                    raise IllegalTransition(f"Job {one.id} is {one.status}; only waiting jobs have a place.")
            place = self._room(connection, row.id, neighbour, is_before=before is not None)
            gone_to = {"before": before, "after": after, "priority": neighbour.priority}
            self._note(
                connection,
                row.id,
                [("moved", {key: value for key, value in gone_to.items() if value is not None})],
                priority=neighbour.priority,
                place=place,
                config={**row.config, "priority": neighbour.priority},
            )
            return self._get(connection, row.id)

    def delete(
        self,
        job_id: str,
        remove_files: Callable[[Row], None] | None = None,
        *,
        drops_champion: bool = False,
    ) -> Row:
        """Delete a job that has ended, with all its rows; return what it was.

        Its files go first: a crash in between leaves a job that can be deleted again, and no file that is
        nobody's. drops_champion: also the job behind `saimp_best.pth`, or the promoted one; the next best
        follows, and without one the file goes.

        Raises JobNotFound, IllegalTransition while it may still run, JobInUse while another starts from it,
        IsChampion.
        """
        self._cancel_the_rest(job_id)
        with self.database.writing("delete") as connection:
            row = self._get(connection, job_id, is_locked=True)
            if row.status not in FINAL:
                raise IllegalTransition(
                    f"The job is {row.status}; only a job that has ended can be deleted.", "Cancel it first."
                )
            own = sa.exists().where(checkpoint.c.job_id == job.c.id)
            starts_here = (job.c.inherits_id == job_id) | (job.c.config["init_from"].as_string() == job_id)
            user = connection.execute(
                sa.select(job.c.id).where(job.c.status.not_in(FINAL), starts_here, ~own).limit(1)
            ).scalar_one_or_none()
            if user is not None:
                raise JobInUse(f"Job {user} starts from its checkpoint.", "Cancel that job, or wait for it.")
            if any(falling(connection, job_id)):  # without it they would depend on nothing, and start
                raise JobInUse("Jobs that depend on it are still being cancelled.", "Try again in a moment.")
            behind = champion.behind_file(connection, self.paths)
            is_champion = row.is_promoted or (behind is not None and behind.id == job_id)
            if is_champion and not drops_champion:
                raise IsChampion(
                    "The job is promoted."
                    if row.is_promoted
                    else f"{BEST_NAME} in the data root is the best of this job.",
                    "With ?champion=drop (saimp rm --drop-champion) the next best takes its place.",
                )
            if remove_files is not None:
                remove_files(row)
            connection.execute(job.delete().where(job.c.id == job_id))
            if row.best_file is not None:
                champion.in_turn(connection)
                self._crown(connection, is_dropped=drops_champion and self._is_of(row, behind))
            return row

    def drain(self, *, is_preempting: bool = True) -> bool:
        """Start no job any more, until `open`; and put running ones back. Returns whether none runs.

        is_preempting false: what runs may run to its end. A repeated drain changes only that.
        """
        with self.database.writing("drain") as connection:
            connection.execute(
                gate.update().values(
                    drained_at=sa.func.coalesce(
                        gate.c.drained_at, sa.literal(self.now(), gate.c.drained_at.type)
                    ),
                    is_preempting=is_preempting,
                )
            )
            running = sa.select(sa.func.count()).select_from(job).where(job.c.status == Status.RUNNING)
            return not connection.execute(running).scalar_one()

    def open(self) -> None:
        """Start jobs again."""
        with self.database.writing("open") as connection:
            connection.execute(gate.update().values(drained_at=None, is_preempting=False))

    def drained_at(self) -> datetime | None:
        """Say since when no job is started; null when the queue is open."""
        with self.database.reading() as connection:
            at: datetime | None = connection.execute(sa.select(gate.c.drained_at)).scalar_one()
            return at

    # ---- places ----

    @staticmethod
    def _lock_gate(connection: sa.Connection) -> int:
        """Let nobody submit or move meanwhile; return the last place."""
        return int(connection.execute(sa.select(gate.c.last_place).with_for_update()).scalar_one())

    def _is_of(self, row: Row, behind: Row | None) -> bool:
        """Whether `saimp_best.pth` is of a job, by the rows as they were or by what it says by now."""
        if behind is not None and behind.id == row.id:
            return True
        return self.paths is not None and champion.holds(self.paths, row)

    def _end_promotion(self, connection: sa.Connection, row: Row) -> None:
        self._note(connection, row.id, [("promotion_ended", {})], is_promoted=False)

    def _see_to_file(self, connection: sa.Connection) -> None:
        try:
            self._follow(connection)
        except OSError as error:
            raise StorageUnavailable(
                f"{BEST_NAME} in the data root cannot be replaced: {error.strerror}.",
                "Nothing was changed. Check the disk of the data root; try again.",
            ) from error

    def _room(self, connection: sa.Connection, job_id: str, neighbour: Row, *, is_before: bool) -> int:
        """Find a free place next to a job, making room when there is none left."""
        place = self._between(connection, job_id, neighbour.priority, neighbour.place, is_before=is_before)
        if place is None:
            self._spread(connection, neighbour.priority)
            fresh = self._get(connection, neighbour.id)
            place = self._between(connection, job_id, fresh.priority, fresh.place, is_before=is_before)
        assert place is not None
        connection.execute(gate.update().where(gate.c.last_place > place).values(last_place=place))
        return place

    @staticmethod
    def _between(
        connection: sa.Connection, job_id: str, priority: int, place: int, *, is_before: bool
    ) -> int | None:
        others = (job.c.status.not_in(FINAL), job.c.priority == priority, job.c.id != job_id)
        # Higher places run first.
        beyond = (
            sa.select(sa.func.min(job.c.place)).where(*others, job.c.place > place)
            if is_before
            else sa.select(sa.func.max(job.c.place)).where(*others, job.c.place < place)
        )
        end = connection.execute(beyond).scalar_one()
        if end is None:
            return place + GAP if is_before else place - GAP
        middle = (place + int(end)) // 2
        return middle if min(place, end) < middle < max(place, end) else None

    @staticmethod
    def _spread(connection: sa.Connection, priority: int) -> None:
        waiting = connection.execute(
            sa.select(job.c.id)
            .where(job.c.status.not_in(FINAL), job.c.priority == priority)
            .order_by(*in_turn())
        ).scalars()
        # Every submit took the last place down by a gap: these stay above it.
        for number, job_id in enumerate(waiting.all(), 1):
            connection.execute(job.update().where(job.c.id == job_id).values(place=-number * GAP))


def _over(row: Row) -> str:
    return f"The job has already {'been cancelled' if row.status == Status.CANCELLED else row.status}"
