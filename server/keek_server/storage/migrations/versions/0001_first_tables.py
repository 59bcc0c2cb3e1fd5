"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_ID = sa.String(128)


def upgrade() -> None:
    """Creates all tables; on PostgreSQL, the two that grow by the second are partitioned."""
    op.create_table(
        "log_identity",
        sa.Column("log_id", sa.String(32), nullable=False),
        sa.Column("pruned_seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("log_id", name="pk_log_identity"),
    )
    op.create_table(
        "videos",
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("owner_id", _ID, nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("duration_s", sa.Float, nullable=False),
        sa.Column("title", sa.String(512), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("video_id", name="pk_videos"),
    )
    op.create_index("ix_videos_owner_id", "videos", ["owner_id"])
    op.create_table(
        "releases",
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("release_id", name="pk_releases"),
    )
    op.create_table(
        "activations",
        sa.Column("seq", _SEQ, nullable=False, autoincrement=True),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("activate_time_us", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(512), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_activations"),
        sqlite_autoincrement=True,
    )
    if op.get_context().dialect.name == "postgresql":
        _create_partitioned()
    else:
        _create_plain()
    op.create_index("ix_interactions_user_id_seq", "interactions", ["user_id", "seq"])


def _interaction_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("kind", sa.SmallInteger, nullable=False),
        sa.Column("event_time_us", sa.BigInteger, nullable=False),
        sa.Column("record_time_us", sa.BigInteger, nullable=False),
        sa.Column("region", sa.String(16), nullable=False),
        sa.Column("tags", sa.JSON, nullable=False),
    ]


def _exposure_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("release_id", sa.String(64), nullable=False),
        sa.Column("serve_time_us", sa.BigInteger, nullable=False),
        sa.Column("slate", sa.JSON, nullable=False),
    ]


def _create_plain() -> None:
    op.create_table(
        "interactions",
        sa.Column("seq", _SEQ, nullable=False, autoincrement=True),
        *_interaction_columns(),
        sa.PrimaryKeyConstraint("seq", name="pk_interactions"),
        sa.UniqueConstraint("event_id", name="uq_interactions_event_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "exposures",
        sa.Column("seq", _SEQ, nullable=False, autoincrement=True),
        *_exposure_columns(),
        sa.PrimaryKeyConstraint("seq", name="pk_exposures"),
        sqlite_autoincrement=True,
    )


def _create_partitioned() -> None:
    """Keys of a partitioned table must hold what it is partitioned by; partitions have more of their own."""
    for table, time, columns in (
        ("interactions", "record_time_us", _interaction_columns()),
        ("exposures", "serve_time_us", _exposure_columns()),
    ):
        # Before version 17, an identity column of a partitioned table is not inherited.
        sequence = f"{table}_seq_seq"
        op.execute(sa.schema.CreateSequence(sa.Sequence(sequence, data_type=sa.BigInteger)))
        op.create_table(
            table,
            sa.Column("seq", sa.BigInteger, server_default=sa.text(f"nextval('{sequence}')"), nullable=False),
            *columns,
            sa.PrimaryKeyConstraint("seq", time, name=f"pk_{table}"),
            postgresql_partition_by=f"RANGE ({time})",
        )
        op.execute(f"ALTER SEQUENCE {sequence} OWNED BY {table}.seq")
