"""Who serves which slot, and what their last holders left running."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.jobs.queue.door import Door
from app.jobs.queue.records import Owner, Row
from app.jobs.states import Status
from app.jobs.tables import job, worker


class Slots(Door):
    def greet(self, owner: Owner, slot: str, machine: Mapping[str, Any]) -> None:
        """Say which supervisor serves a slot, and on what machine."""
        now = self.now()
        values = {
            "owner": owner.as_json(),
            "machine": dict(machine),
            "started_at": now,
            "heartbeat_at": now,
        }
        with self.database.writing("greet") as connection:
            if not connection.execute(worker.update().where(worker.c.slot == slot).values(**values)).rowcount:
                connection.execute(worker.insert().values(slot=slot, **values))

    def beat(self, slot: str) -> None:
        """Say that the supervisor of a slot lives."""
        with self.database.writing("beat") as connection:
            connection.execute(worker.update().where(worker.c.slot == slot).values(heartbeat_at=self.now()))

    def leave(self, slot: str) -> None:
        """Say that the supervisor of a slot has gone."""
        with self.database.writing("leave") as connection:
            connection.execute(worker.delete().where(worker.c.slot == slot))

    def workers(self) -> Sequence[Row]:
        """List the supervisors that have said they serve a slot."""
        with self.database.reading() as connection:
            return connection.execute(sa.select(worker).order_by(worker.c.slot)).all()

    def orphans(self, slot: str) -> Sequence[Row]:
        """List the jobs a slot is said to run; its new holder asks, when the old one is gone."""
        with self.database.reading() as connection:
            return connection.execute(
                sa.select(job).where(job.c.status == Status.RUNNING, job.c.slot == slot)
            ).all()

    def running(self, host: str) -> Sequence[Row]:
        """List the jobs a host is said to run, with their owners: whoever looks knows which still live."""
        with self.database.reading() as connection:
            return connection.execute(
                sa.select(job).where(job.c.status == Status.RUNNING, job.c.owner["host"].as_string() == host)
            ).all()
