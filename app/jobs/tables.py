"""The tables. CHECKs and partial unique indexes say what a row may be, so that a row cannot lie."""

from __future__ import annotations

import sqlalchemy as sa

from app.db import Finite, UtcTime
from app.jobs.states import FINAL, Status

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

NULLABLE_JSON = sa.JSON(none_as_null=True)  # None is SQL's NULL, not JSON's null


def _listed(statuses: object) -> str:
    return ", ".join(f"'{status}'" for status in sorted(statuses))  # type: ignore[call-overload]


job = sa.Table(
    "job",
    metadata,
    sa.Column("id", sa.String(26), primary_key=True),
    sa.Column("name", sa.Text),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16)),
    sa.Column("reason_code", sa.String(32)),
    sa.Column("reason_message", sa.Text),
    sa.Column("reason_hint", sa.Text),
    sa.Column("priority", sa.Integer, nullable=False),
    # Inside equal priority the higher place runs first. It counts down with every submit; a move sets it.
    sa.Column("place", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("not_before", UtcTime),
    sa.Column("run_after", UtcTime),  # the end of a crash's backoff, or the next look at a busy GPU
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # the fencing token: only grows
    # Of the last commit of its rows: by it an attempt knows one whose answer was lost.
    sa.Column("flush", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("cancel_requested_at", UtcTime),
    sa.Column("pause_requested_at", UtcTime),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("config_hash", sa.String(64), nullable=False),
    sa.Column("resolved", NULLABLE_JSON),
    sa.Column("plan", NULLABLE_JSON),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("data_fingerprint", sa.String(64)),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_hash", sa.String(64)),  # of what came with the key
    sa.Column("parent_id", sa.String(26)),
    # A retry goes on from this job's newest checkpoint up to this one, until it has its own.
    sa.Column("inherits_id", sa.String(26)),
    sa.Column("inherits_seq", sa.BigInteger),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("started_at", UtcTime),
    sa.Column("attempt_started_at", UtcTime),
    sa.Column("finished_at", UtcTime),
    sa.Column("runtime_s", Finite, nullable=False),  # of ended attempts
    sa.Column("log_name", sa.String(64)),
    # Who runs it: {host, boot_id, pid, pid_start}.
    sa.Column("slot", sa.String(255)),
    sa.Column("owner", NULLABLE_JSON),
    sa.Column("heartbeat_at", UtcTime),
    sa.Column("lease_until", UtcTime),  # by the server's clock; matters only between hosts
    # Progress of the running attempt.
    sa.Column("epoch", sa.Integer),
    sa.Column("epochs", sa.Integer),
    sa.Column("batch", sa.Integer),
    sa.Column("batches", sa.Integer),
    sa.Column("samples_per_s", Finite),
    # The best so far.
    sa.Column("best_epoch", sa.Integer),
    sa.Column("best_val_loss", Finite),
    sa.Column("best_val_accuracy", Finite),
    sa.Column("best_file", sa.Text),  # below the job's folder; immutable
    sa.Column("best_sha256", sa.String(64)),
    sa.Column("best_bytes", sa.BigInteger),
    sa.Column("test", NULLABLE_JSON),
    # Which job is the champion (app/jobs/champion.py).
    sa.Column("comparison_key", sa.String(64)),  # null before the split is settled
    sa.Column(
        "ending", sa.BigInteger
    ),  # of a job that ended with a best: the how-manieth, whatever clocks say
    sa.Column("is_promoted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("seq", sa.BigInteger, nullable=False),  # last sequence number given to a row of this job
    sa.CheckConstraint(f"status IN ({_listed(Status)})", name="status"),
    sa.CheckConstraint(
        f"(status IN ({_listed(FINAL)})) = (finished_at IS NOT NULL)", name="final_has_finished_at"
    ),
    sa.CheckConstraint("(status = 'running') = (slot IS NOT NULL)", name="running_has_slot"),
    sa.CheckConstraint("(status = 'running') = (owner IS NOT NULL)", name="running_has_owner"),
    sa.CheckConstraint("status = 'running' OR phase IS NULL", name="phase_only_while_running"),
    sa.CheckConstraint(
        f"status NOT IN ({_listed(FINAL)}) OR reason_code IS NOT NULL", name="final_has_reason"
    ),
    sa.CheckConstraint(
        "(best_epoch IS NULL) = (best_file IS NULL) AND (best_file IS NULL) = (best_sha256 IS NULL)",
        name="best_is_whole",
    ),
    sa.CheckConstraint("attempt >= 0 AND crashes >= 0 AND seq >= 0", name="counters"),
    sa.CheckConstraint("priority BETWEEN -1000 AND 1000", name="priority"),
    sa.Index("ix_job_claim", "status", "priority", "place"),
    sa.Index(
        "uq_job_slot",
        "slot",
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    ),
    sa.Index("uq_job_idempotency_key", "idempotency_key", unique=True),
    sa.Index("ix_job_champion", "comparison_key", "best_val_loss", "ending"),
    sa.Index("ix_job_ending", "ending"),
    # At most one in all.
    sa.Index(
        "uq_job_promoted",
        "is_promoted",
        unique=True,
        sqlite_where=sa.text("is_promoted"),
        postgresql_where=sa.text("is_promoted"),
    ),
)

# A job runs only after the jobs it needs have succeeded.
dependency = sa.Table(
    "dependency",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("needs_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Index("ix_dependency_needs_id", "needs_id"),
    sqlite_with_rowid=False,
)

# History: append-only.
event = sa.Table(
    "event",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_with_rowid=False,
)

batch_row = sa.Table(
    "batch_row",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("batch", sa.BigInteger, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("loss", Finite),  # null = not finite
    sa.Column("accuracy", Finite),
    sa.Column("lr", Finite),
    sa.Column("grad_norm", Finite),
    sa.Column("time", UtcTime, nullable=False),
    sa.Index("ix_batch_row_seq", "job_id", "seq"),
    sqlite_with_rowid=False,
)

epoch_row = sa.Table(
    "epoch_row",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("train_loss", Finite),
    sa.Column("train_accuracy", Finite),
    sa.Column("val_loss", Finite),
    sa.Column("val_accuracy", Finite),
    sa.Column("best", sa.Boolean, nullable=False),
    sa.Column("best_file", sa.Text),  # of a best: what the job's columns go back to when it resumes here
    sa.Column("best_sha256", sa.String(64)),
    sa.Column("best_bytes", sa.BigInteger),
    sa.Column("lr", Finite),
    sa.Column("duration_s", Finite),
    sa.Column("samples_per_s", Finite),
    sa.Column("ece", Finite),
    sa.Column("confusion", sa.JSON, nullable=False),  # scores are computed from it when read
    # Of a best, {hits, support, predicted} of its confusion: all that a list of jobs needs to read.
    sa.Column("margins", NULLABLE_JSON),
    sa.Column("ram_peak", sa.BigInteger),
    sa.Column("vram_peak", sa.BigInteger),
    sa.Column("skipped_steps", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

# Resume checkpoints: a file counts only through its row.
checkpoint = sa.Table(
    "checkpoint",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("batch", sa.BigInteger, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),  # optimizer steps applied before it
    sa.Column("is_epoch_trained", sa.Boolean, nullable=False),  # validation is pending
    sa.Column("name", sa.Text, nullable=False),  # below the job's folder; immutable
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sqlite_with_rowid=False,
)

system_row = sa.Table(
    "system_row",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("ram_used", sa.BigInteger),
    sa.Column("ram_total", sa.BigInteger),
    sa.Column("process_rss", sa.BigInteger),
    sa.Column("cpu_percent", Finite),
    sa.Column("vram_used", sa.BigInteger),
    sa.Column("vram_total", sa.BigInteger),
    sa.Column("vram_process", sa.BigInteger),
    sa.Column("vram_torch_peak", sa.BigInteger),
    sa.Column("gpu_percent", Finite),
    sa.Column("gpu_temperature", Finite),
    sqlite_with_rowid=False,
)

# One row a slot: the supervisor that serves it.
worker = sa.Table(
    "worker",
    metadata,
    sa.Column("slot", sa.String(255), primary_key=True),
    sa.Column("owner", sa.JSON, nullable=False),
    sa.Column("machine", sa.JSON, nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("heartbeat_at", UtcTime, nullable=False),
)

# One row: the way into the queue, and out of it.
gate = sa.Table(
    "gate",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last_place", sa.BigInteger, nullable=False),
    sa.Column("drained_at", UtcTime),  # null: open
    sa.Column("is_preempting", sa.Boolean, nullable=False),  # drained, and running jobs are put back
    sa.CheckConstraint("id = 1", name="one_row"),
)
