"""The language and the region of a video."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Those of videos that are there already are unknown."""
    op.add_column("videos", sa.Column("language", sa.String(35), nullable=False, server_default=""))
    op.add_column("videos", sa.Column("region", sa.String(16), nullable=False, server_default=""))
