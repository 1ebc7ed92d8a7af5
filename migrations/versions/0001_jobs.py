"""the job table and what hangs on it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import app.db

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("reason_code", sa.String(length=32), nullable=True),
        sa.Column("reason_message", sa.Text(), nullable=True),
        sa.Column("reason_hint", sa.Text(), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("run_after", app.db.UtcTime(), nullable=True),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("cancel_requested_at", app.db.UtcTime(), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("resolved", sa.JSON(), nullable=True),
        sa.Column("plan", sa.JSON(), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("data_fingerprint", sa.String(length=64), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("parent_id", sa.String(length=26), nullable=True),
        sa.Column("created_at", app.db.UtcTime(), nullable=False),
        sa.Column("started_at", app.db.UtcTime(), nullable=True),
        sa.Column("attempt_started_at", app.db.UtcTime(), nullable=True),
        sa.Column("finished_at", app.db.UtcTime(), nullable=True),
        sa.Column("runtime_s", sa.Float(), nullable=False),
        sa.Column("log_name", sa.String(length=64), nullable=True),
        sa.Column("slot", sa.String(length=255), nullable=True),
        sa.Column("owner", sa.JSON(), nullable=True),
        sa.Column("heartbeat_at", app.db.UtcTime(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("epochs", sa.Integer(), nullable=True),
        sa.Column("batch", sa.Integer(), nullable=True),
        sa.Column("batches", sa.Integer(), nullable=True),
        sa.Column("samples_per_s", sa.Float(), nullable=True),
        sa.Column("best_epoch", sa.Integer(), nullable=True),
        sa.Column("best_val_loss", sa.Float(), nullable=True),
        sa.Column("best_val_accuracy", sa.Float(), nullable=True),
        sa.Column("best_file", sa.Text(), nullable=True),
        sa.Column("best_sha256", sa.String(length=64), nullable=True),
        sa.Column("best_bytes", sa.BigInteger(), nullable=True),
        sa.Column("test", sa.JSON(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(status = 'running') = (owner IS NOT NULL)", name=op.f("ck_job_running_has_owner")
        ),
        sa.CheckConstraint("(status = 'running') = (slot IS NOT NULL)", name=op.f("ck_job_running_has_slot")),
        sa.CheckConstraint(
            "(status IN ('cancelled', 'failed', 'succeeded')) = (finished_at IS NOT NULL)",
            name=op.f("ck_job_final_has_finished_at"),
        ),
        sa.CheckConstraint(
            "status = 'running' OR phase IS NULL", name=op.f("ck_job_phase_only_while_running")
        ),
        sa.CheckConstraint(
            "status IN ('cancelled', 'failed', 'paused', 'queued', 'running', 'succeeded')",
            name=op.f("ck_job_status"),
        ),
        sa.CheckConstraint(
            "status NOT IN ('cancelled', 'failed', 'succeeded') OR reason_code IS NOT NULL",
            name=op.f("ck_job_final_has_reason"),
        ),
        sa.CheckConstraint(
            "(best_epoch IS NULL) = (best_file IS NULL) AND (best_file IS NULL) = (best_sha256 IS NULL)",
            name=op.f("ck_job_best_is_whole"),
        ),
        sa.CheckConstraint("attempt >= 0 AND crashes >= 0 AND seq >= 0", name=op.f("ck_job_counters")),
        sa.CheckConstraint("priority BETWEEN -1000 AND 1000", name=op.f("ck_job_priority")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_job_claim",
            ["priority", "id"],
            unique=False,
            sqlite_where=sa.text("status = 'queued'"),
            postgresql_where=sa.text("status = 'queued'"),
        )
        batch_op.create_index("ix_job_status", ["status"], unique=False)
        batch_op.create_index("uq_job_idempotency_key", ["idempotency_key"], unique=True)
        batch_op.create_index(
            "uq_job_slot",
            ["slot"],
            unique=True,
            sqlite_where=sa.text("status = 'running'"),
            postgresql_where=sa.text("status = 'running'"),
        )

    op.create_table(
        "worker",
        sa.Column("slot", sa.String(length=255), nullable=False),
        sa.Column("owner", sa.JSON(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("started_at", app.db.UtcTime(), nullable=False),
        sa.Column("heartbeat_at", app.db.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("slot", name=op.f("pk_worker")),
    )
    op.create_table(
        "batch_row",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("accuracy", sa.Float(), nullable=True),
        sa.Column("lr", sa.Float(), nullable=True),
        sa.Column("grad_norm", sa.Float(), nullable=True),
        sa.Column("time", app.db.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_batch_row_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "epoch", "batch", name=op.f("pk_batch_row")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("batch_row", schema=None) as batch_op:
        batch_op.create_index("ix_batch_row_seq", ["job_id", "seq"], unique=False)

    op.create_table(
        "dependency",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("needs_id", sa.String(length=26), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_dependency_job_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["needs_id"], ["job.id"], name=op.f("fk_dependency_needs_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "needs_id", name=op.f("pk_dependency")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("dependency", schema=None) as batch_op:
        batch_op.create_index("ix_dependency_needs_id", ["needs_id"], unique=False)

    op.create_table(
        "epoch_row",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("time", app.db.UtcTime(), nullable=False),
        sa.Column("train_loss", sa.Float(), nullable=True),
        sa.Column("train_accuracy", sa.Float(), nullable=True),
        sa.Column("val_loss", sa.Float(), nullable=True),
        sa.Column("val_accuracy", sa.Float(), nullable=True),
        sa.Column("best", sa.Boolean(), nullable=False),
        sa.Column("lr", sa.Float(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("samples_per_s", sa.Float(), nullable=True),
        sa.Column("ece", sa.Float(), nullable=True),
        sa.Column("confusion", sa.JSON(), nullable=False),
        sa.Column("ram_peak", sa.BigInteger(), nullable=True),
        sa.Column("vram_peak", sa.BigInteger(), nullable=True),
        sa.Column("skipped_steps", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_epoch_row_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "epoch", name=op.f("pk_epoch_row")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "event",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("time", app.db.UtcTime(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_event_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_event")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "system_row",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("time", app.db.UtcTime(), nullable=False),
        sa.Column("ram_used", sa.BigInteger(), nullable=True),
        sa.Column("ram_total", sa.BigInteger(), nullable=True),
        sa.Column("process_rss", sa.BigInteger(), nullable=True),
        sa.Column("cpu_percent", sa.Float(), nullable=True),
        sa.Column("vram_used", sa.BigInteger(), nullable=True),
        sa.Column("vram_total", sa.BigInteger(), nullable=True),
        sa.Column("vram_process", sa.BigInteger(), nullable=True),
        sa.Column("vram_torch_peak", sa.BigInteger(), nullable=True),
        sa.Column("gpu_percent", sa.Float(), nullable=True),
        sa.Column("gpu_temperature", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_system_row_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_system_row")),
        sqlite_with_rowid=False,
    )
