"""Experiments; exposures say whose arm they are of, how long they took and whether they lacked anything."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Exposures that are there already are of no experiment, and nothing is known of how they were made."""
    op.add_column("exposures", sa.Column("arms", sa.JSON, nullable=True))
    op.add_column("exposures", sa.Column("pool", sa.JSON, nullable=True))
    op.add_column("exposures", sa.Column("first_slot", sa.Integer, nullable=False, server_default="0"))
    op.add_column("exposures", sa.Column("slot_count", sa.Integer, nullable=False, server_default="0"))
    op.add_column("exposures", sa.Column("elapsed_us", sa.Integer, nullable=False, server_default="0"))
    op.add_column("exposures", sa.Column("degraded", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "experiments",
        sa.Column("experiment_id", sa.String(64), nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("buckets", sa.JSON, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("start_time_us", sa.BigInteger, nullable=True),
        sa.Column("stop_time_us", sa.BigInteger, nullable=True),
        sa.Column("weights_time_us", sa.BigInteger, nullable=True),
        sa.Column("review_time_us", sa.BigInteger, nullable=False),
        sa.Column("stopped_arms", sa.JSON, nullable=False),
        sa.Column("winner", sa.String(64), nullable=False),
        sa.Column("conclusion", sa.String(4096), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", name="pk_experiments"),
    )
    op.create_index("ix_experiments_state", "experiments", ["state"])
