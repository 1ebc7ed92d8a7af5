"""What everybody may look at. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from app.db import Damaged
from app.jobs import champion
from app.jobs.champion import Champion
from app.jobs.config import canonical, memory_key
from app.jobs.queue.door import Door, in_turn, unmet
from app.jobs.queue.records import Row
from app.jobs.scores import Margins
from app.jobs.states import Status
from app.jobs.tables import dependency, epoch_row, event, job

_IN_LINE = ("id", "name", "status", "priority", "place", "not_before", "run_after", "created_at")
_RECENT = 200  # jobs that are looked back at
_REASON = ("reason_code", "reason_message", "reason_hint")
# What tells how long a job will take: the samples it trains on, and what trained so fast before.
_WORK = (
    job.c.config[("model", "name")].as_string().label("model"),
    job.c.plan[("splits", "train", "windows")].as_integer().label("windows"),
    job.c.config[("training", "epochs")].as_integer().label("max_epochs"),
    job.c.epoch,
    job.c.samples_per_s,
)


class Reading(Door):
    def get(self, job_id: str) -> Row:
        """Read one job. Raises JobNotFound."""
        with self.database.reading() as connection:
            return self._get(connection, job_id)

    def page(
        self,
        *,
        statuses: Sequence[Status] = (),
        tag: str | None = None,
        text: str | None = None,
        newest_first: bool = True,
        limit: int = 50,
        after: str | None = None,
    ) -> tuple[Sequence[Row], bool]:
        """Page through the jobs by id, behind the last id of the page before. Returns (rows, has_more)."""
        query = sa.select(job)
        if statuses:
            query = query.where(job.c.status.in_(list(statuses)))
        if tag is not None:
            # Tags are a JSON list of printable strings: the quoted tag occurs in its text.
            query = query.where(
                sa.cast(job.c.tags, sa.Text).contains(canonical([tag])[1:-1], autoescape=True)
            )
        if text is not None:
            query = query.where(
                job.c.name.icontains(text, autoescape=True) | job.c.id.istartswith(text, autoescape=True)
            )
        if after is not None:
            query = query.where(job.c.id < after if newest_first else job.c.id > after)
        query = query.order_by(job.c.id.desc() if newest_first else job.c.id).limit(limit + 1)
        with self.database.reading() as connection:
            rows = connection.execute(query).all()
        return rows[:limit], len(rows) > limit

    def champion(self, key: str) -> Row | None:
        """Find the champion of a comparison key; null = none."""
        with self.database.reading() as connection:
            return champion.champion(connection, key)

    def champions(
        self, *, limit: int, after: int | None = None, path: str | None = None
    ) -> tuple[Sequence[Champion], bool]:
        """Page through the champions of all keys, the newest key first. Returns (champions, has_more)."""
        with self.database.reading() as connection:
            return champion.champions(connection, self.paths, limit=limit, after=after, path=path)

    def champion_ids(self, keys: Collection[str]) -> frozenset[str]:
        """Name the champions of some comparison keys."""
        if not keys:
            return frozenset()
        with self.database.reading() as connection:
            return champion.champion_ids(connection, keys)

    def counts(self) -> Mapping[str, int]:
        """Count the jobs of each status there is."""
        query = sa.select(job.c.status, sa.func.count()).group_by(job.c.status)
        with self.database.reading() as connection:
            return {status: int(number) for status, number in connection.execute(query)}

    def position(self, row: Row) -> int | None:
        """Count the place of a queued job, from 1; null when it is not queued."""
        if row.status != Status.QUEUED:
            return None
        ahead = sa.select(sa.func.count()).where(
            job.c.status == Status.QUEUED,
            (job.c.priority > row.priority)
            | ((job.c.priority == row.priority) & (job.c.place > row.place))
            | ((job.c.priority == row.priority) & (job.c.place == row.place) & (job.c.id < row.id)),
        )
        with self.database.reading() as connection:
            return int(connection.execute(ahead).scalar_one()) + 1

    def line(self) -> Sequence[Row]:
        """List the queued jobs in the order they would be claimed, without their configs."""
        columns = [*(job.c[name] for name in (*_IN_LINE, *_REASON)), *_WORK]
        query = sa.select(*columns).where(job.c.status == Status.QUEUED).order_by(*in_turn())
        with self.database.reading() as connection:
            rows: Sequence[Row] = connection.execute(query).all()
        return rows

    def speeds(self, limit: int = 50) -> Sequence[tuple[str, float]]:
        """List (model, samples per second) of the last jobs that have trained, the newest first."""
        with self.database.reading() as connection:
            found = connection.execute(
                sa.select(_WORK[0], job.c.samples_per_s)
                .where(job.c.samples_per_s > 0)
                .order_by(job.c.id.desc())
                .limit(limit)
            ).all()
        return [(row.model, row.samples_per_s) for row in found]

    def newest_epoch(self, job_id: str) -> Row | None:
        """Read duration_s and samples_per_s of the last epoch a job has finished."""
        columns = [epoch_row.c[name] for name in ("duration_s", "samples_per_s")]
        query = sa.select(*columns).where(epoch_row.c.job_id == job_id).order_by(epoch_row.c.epoch.desc())
        with self.database.reading() as connection:
            return connection.execute(query.limit(1)).one_or_none()

    def best_margins(self, job_ids: Sequence[str]) -> Mapping[str, Margins]:
        """Read what scores the validation of each job's best epoch, as far as there is one."""
        if not job_ids:
            return {}
        query = (
            sa.select(epoch_row.c.job_id, epoch_row.c.margins)
            .join(job, (job.c.id == epoch_row.c.job_id) & (job.c.best_epoch == epoch_row.c.epoch))
            .where(job.c.id.in_(job_ids), epoch_row.c.margins.is_not(None))
        )
        with self.database.reading() as connection:
            return {row.job_id: Margins(**row.margins) for row in connection.execute(query)}

    def rung(self, job_id: str) -> Mapping[str, Any] | None:
        """Say where on the OOM ladder the job is to go on after an attempt that could not; null = no such."""
        told = sa.select(event.c.data).where(event.c.job_id == job_id, event.c.kind == "oom_recovered")
        with self.database.reading() as connection:
            for data in connection.execute(told.order_by(event.c.seq.desc())).scalars():
                if data.get("during") == "the optimizer step":
                    found: Mapping[str, Any] = data["rung"]
                    return found
        return None

    def rung_of_like(self, config: Mapping[str, Any], gpu: str | None) -> Mapping[str, Any] | None:
        """Find where on the OOM ladder the last job of the same needs ended up on the same GPU; null = none.

        Only a job counts that trained an epoch there.
        """
        is_recent = job.c.id.in_(
            sa.select(job.c.id)
            .where(job.c.attempt > 0)
            .order_by(job.c.id.desc())
            .limit(_RECENT)
            .scalar_subquery()
        )
        has_trained = sa.exists().where(epoch_row.c.job_id == job.c.id)
        descended = sa.exists().where(event.c.job_id == job.c.id, event.c.kind == "oom_recovered")
        is_lost = sa.func.coalesce(job.c.reason_code, "") == "gpu_out_of_memory"
        key = memory_key(config)
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(job.c.id, job.c.config, job.c.resolved)
                .where(is_recent, has_trained, descended, ~is_lost)
                .order_by(job.c.id.desc())
            )
            for row in rows:
                if isinstance(row.config, Damaged):
                    continue
                if (row.resolved or {}).get("gpu") == gpu and memory_key(row.config) == key:
                    data = connection.execute(
                        sa.select(event.c.data)
                        .where(event.c.job_id == row.id, event.c.kind == "oom_recovered")
                        .order_by(event.c.seq.desc())
                        .limit(1)
                    ).scalar_one()
                    found: Mapping[str, Any] | None = data.get("rung")
                    return found
        return None

    def trained(self, model: str, limit: int = 20) -> Sequence[Row]:
        """List the last jobs of a model that have trained an epoch, the newest first.

        Each: config, resolved, windows (of the training split), epoch_s (mean duration), vram_peak (null
        without a GPU), has_descended (whether it ran out of memory).
        """
        epochs = (
            sa.select(
                epoch_row.c.job_id,
                sa.func.avg(epoch_row.c.duration_s).label("epoch_s"),
                sa.func.max(epoch_row.c.vram_peak).label("vram_peak"),
            )
            .group_by(epoch_row.c.job_id)
            .subquery()
        )
        descended = sa.exists().where(event.c.job_id == job.c.id, event.c.kind == "oom_recovered")
        columns = (job.c.config, job.c.resolved, _WORK[1], epochs.c.epoch_s, epochs.c.vram_peak)
        with self.database.reading() as connection:
            rows = connection.execute(
                sa.select(*columns, descended.label("has_descended"))
                .join(epochs, epochs.c.job_id == job.c.id)
                .where(job.c.config[("model", "name")].as_string() == model)
                .where(job.c.resolved.is_not(None), epochs.c.epoch_s.is_not(None))
                .order_by(job.c.id.desc())
                .limit(limit)
            ).all()
        return [row for row in rows if not isinstance(row.resolved, Damaged)]

    def waits_for(self, job_id: str) -> Sequence[str]:
        """List the dependencies of a job that have not succeeded yet."""
        with self.database.reading() as connection:
            return connection.execute(unmet(job_id)).scalars().all()

    def waiting(self) -> dict[str, list[str]]:
        """Map each queued job that has unmet dependencies to them."""
        needed = job.alias("needed")
        found: dict[str, list[str]] = {}
        with self.database.reading() as connection:
            for job_id, needs_id in connection.execute(
                sa.select(dependency.c.job_id, dependency.c.needs_id)
                .join(job, job.c.id == dependency.c.job_id)
                .join(needed, needed.c.id == dependency.c.needs_id)
                .where(job.c.status == Status.QUEUED, needed.c.status != Status.SUCCEEDED)
                .order_by(dependency.c.needs_id)
            ):
                found.setdefault(job_id, []).append(needs_id)
        return found

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[Row]:
        """Read the history of a job behind sequence number `after`. Raises JobNotFound."""
        with self.database.reading() as connection:
            self._get(connection, job_id)
            return connection.execute(
                sa.select(event)
                .where(event.c.job_id == job_id, event.c.seq > after)
                .order_by(event.c.seq)
                .limit(limit)
            ).all()
