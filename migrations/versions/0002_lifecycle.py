"""pause, places in the queue, leases, resume checkpoints"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import app.db

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Columns are added, no table is rebuilt: SQLite would drop it, and with it all rows that refer to it.
    for column in (
        sa.Column("place", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("not_before", app.db.UtcTime(), nullable=True),
        sa.Column("pause_requested_at", app.db.UtcTime(), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=True),
        sa.Column("inherits_id", sa.String(length=26), nullable=True),
        sa.Column("inherits_seq", sa.BigInteger(), nullable=True),
        sa.Column("lease_until", app.db.UtcTime(), nullable=True),
    ):
        op.add_column("job", column)
    for column in (
        sa.Column("best_file", sa.Text(), nullable=True),
        sa.Column("best_sha256", sa.String(length=64), nullable=True),
        sa.Column("best_bytes", sa.BigInteger(), nullable=True),
    ):
        op.add_column("epoch_row", column)
    op.drop_index("ix_job_status", "job")
    op.drop_index("ix_job_claim", "job")
    op.create_index("ix_job_claim", "job", ["status", "priority", "place"])
    op.create_table(
        "checkpoint",
        sa.Column("job_id", sa.String(length=26), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("is_epoch_trained", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", app.db.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["job.id"], name=op.f("fk_checkpoint_job_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_checkpoint")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "gate",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_place", sa.BigInteger(), nullable=False),
        sa.Column("drained_at", app.db.UtcTime(), nullable=True),
        sa.Column("is_preempting", sa.Boolean(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_gate_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate")),
    )
    # What waits keeps its order: oldest first, so with the highest place.
    op.execute(
        "UPDATE job SET place = ranked.place FROM"
        " (SELECT id, -1048576 * row_number() OVER (ORDER BY id) AS place FROM job) AS ranked"
        " WHERE ranked.id = job.id"
    )
    op.execute(
        "INSERT INTO gate (id, last_place, is_preempting) SELECT 1, coalesce(min(place), 0), false FROM job"
    )
    op.execute("UPDATE job SET not_before = run_after WHERE attempt = 0")
    op.execute("UPDATE job SET run_after = NULL WHERE attempt = 0")
