"""Who writes exposures, and which of their batches are stored."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Exposures themselves stay as they are: a batch is known by its writer and its number."""
    op.create_table(
        "exposure_writers",
        sa.Column("writer_id", sa.String(32), nullable=False),
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("write_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("writer_id", name="pk_exposure_writers"),
    )
