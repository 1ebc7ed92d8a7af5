"""the champions: which jobs are comparable, in which order they ended, which one is promoted"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"

# As it was when the migration was written: what jobs are called must not move with the code.
_LATER: dict[str, Any] = {"group": None, "non_finite": "error"}

job = sa.table(
    "job",
    sa.column("id", sa.String),
    sa.column("config", sa.JSON),
    sa.column("best_file", sa.Text),
    sa.column("comparison_key", sa.String),
    sa.column("is_promoted", sa.Boolean),
)


def upgrade() -> None:
    for column in (
        sa.Column("comparison_key", sa.String(length=64), nullable=True),
        sa.Column("ending", sa.BigInteger(), nullable=True),
        sa.Column("is_promoted", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("job", column)
    op.create_index("ix_job_champion", "job", ["comparison_key", "best_val_loss", "ending"])
    op.create_index("ix_job_ending", "job", ["ending"])
    op.create_index(
        "uq_job_promoted",
        "job",
        ["is_promoted"],
        unique=True,
        sqlite_where=sa.text("is_promoted"),
        postgresql_where=sa.text("is_promoted"),
    )
    op.execute(
        "UPDATE job SET ending = ranked.ending FROM"
        " (SELECT id, row_number() OVER (ORDER BY finished_at, id) AS ending FROM job"
        "  WHERE finished_at IS NOT NULL AND best_file IS NOT NULL) AS ranked"
        " WHERE ranked.id = job.id"
    )
    data_root: Path | None = context.config.attributes.get("data_root")
    if data_root is not None:
        _take_keys(data_root)
        _take_promotion(data_root)


def _take_keys(data_root: Path) -> None:
    """Take the comparison keys from the descriptions beside the bests: only there they have been so far.

    A description that is missing or damaged leaves its job without a key, comparable with none.
    """
    connection = op.get_bind()
    bests = sa.select(job.c.id, job.c.config, job.c.best_file).where(job.c.best_file.is_not(None))
    for row in connection.execute(bests).all():
        folder = data_root / "jobs" / row.id
        for path in (folder / "saimp_best.json", (folder / row.best_file).with_suffix(".json")):
            key = _read(path).get("comparison_key")
            if isinstance(key, str) and re.fullmatch("[0-9a-f]{64}", key):
                named = job.update().where(job.c.id == row.id)
                connection.execute(named.values(comparison_key=_with_later(key, row.config)))
                break


def _take_promotion(data_root: Path) -> None:
    """Take over the promotion that stands, until now a word in the champion's description.

    A champion whose job has been deleted has no row that could keep it: it is put aside under a name of its
    own before another takes its place.
    """
    connection = op.get_bind()
    weights = data_root / "saimp_best.pth"
    about = _read(weights.with_suffix(".json"))
    if not about or not weights.exists():
        return
    job_id = str(about.get("job_id"))
    if not re.fullmatch("[0-9A-Z]{26}", job_id):
        return  # none of ours
    known = connection.execute(
        sa.select(job.c.id).where(job.c.id == job_id, job.c.best_file.is_not(None))
    ).scalar_one_or_none()
    if known is None:
        aside = f"saimp_best.{str(about.get('sha256'))[:8]}"
        if re.fullmatch(r"saimp_best\.[0-9a-f]{8}", aside):
            for file in (weights, weights.with_suffix(".json")):
                with suppress(OSError):
                    os.link(file, data_root / (aside + file.suffix))
    elif about.get("pinned") is True:
        connection.execute(job.update().where(job.c.id == known).values(is_promoted=True))


def _with_later(key: str, config: dict[str, Any]) -> str:
    """Add to a key what the first keys left out: jobs that differ in it are not comparable."""
    data = config.get("data", {})
    later = {name: data[name] for name, value in _LATER.items() if data.get(name, value) != value}
    if not later:
        return key
    text = json.dumps({"key": key, **later}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}
