"""What is served becomes a plan with trials; refused releases stay known; servers say what they run."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_READY = "1"


def upgrade() -> None:
    """Releases that are there already are READY; activations before this had no trial."""
    op.add_column("releases", sa.Column("state", sa.SmallInteger, nullable=False, server_default=_READY))
    for column in (
        sa.Column("is_rollback", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("trial_release_id", sa.String(64), nullable=False, server_default=""),
        sa.Column("trial_kind", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("trial_percent", sa.Float, nullable=False, server_default="0"),
        sa.Column("request_id", sa.Uuid, nullable=True),
    ):
        op.add_column("activations", column)
    op.create_index("ix_activations_request_id", "activations", ["request_id"], unique=True)
    op.create_table(
        "servers",
        sa.Column("server_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("start_time_us", sa.BigInteger, nullable=False),
        sa.Column("heartbeat_time_us", sa.BigInteger, nullable=False),
        sa.Column("plan_seq", sa.BigInteger, nullable=False),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("trial_release_id", sa.String(64), nullable=False),
        sa.Column("held_release_ids", sa.JSON, nullable=False),
        sa.Column("problem", sa.String(512), nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_servers"),
    )
