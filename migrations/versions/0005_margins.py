"""what a list of jobs needs of the confusion counts of the bests"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

epoch_row = sa.table(
    "epoch_row",
    sa.column("job_id", sa.String),
    sa.column("epoch", sa.Integer),
    sa.column("best", sa.Boolean),
    sa.column("confusion", sa.JSON),
    sa.column("margins", sa.JSON),
)


def upgrade() -> None:
    op.add_column("epoch_row", sa.Column("margins", sa.JSON(), nullable=True))
    connection = op.get_bind()
    bests = connection.execute(sa.select(epoch_row.c.job_id, epoch_row.c.epoch).where(epoch_row.c.best)).all()
    for job_id, epoch in bests:  # one by one: a matrix may be large
        row = (epoch_row.c.job_id == job_id) & (epoch_row.c.epoch == epoch)
        confusion = connection.execute(sa.select(epoch_row.c.confusion).where(row)).scalar_one()
        margins = {
            "hits": [counts[k] for k, counts in enumerate(confusion)],
            "support": [sum(counts) for counts in confusion],
            "predicted": [sum(counts) for counts in zip(*confusion, strict=True)],
        }
        connection.execute(epoch_row.update().where(row).values(margins=margins))
