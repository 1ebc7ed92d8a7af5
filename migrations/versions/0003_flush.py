"""a number for each write of an attempt"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("job", sa.Column("flush", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
