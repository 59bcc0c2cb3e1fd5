"""How long a video was watched."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Of interactions that are there already it is unknown; partitions get the column with their table."""
    op.add_column("interactions", sa.Column("watched_ms", sa.Integer, nullable=True))
