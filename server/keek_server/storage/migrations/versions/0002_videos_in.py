"""Uploads, clip vectors, and a clock that puts the changes of the catalogue in order."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.String(128)
_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_READY = "4"


def upgrade() -> None:
    """Videos that are there already are READY, and older than any change."""
    added = (
        sa.Column("state", sa.SmallInteger, nullable=False, server_default=_READY),
        sa.Column("change_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("width", sa.Integer, nullable=False, server_default="0"),
        sa.Column("height", sa.Integer, nullable=False, server_default="0"),
        sa.Column("original_url", sa.String(2048), nullable=False, server_default=""),
        sa.Column("poster_url", sa.String(2048), nullable=False, server_default=""),
    )
    for column in added:
        op.add_column("videos", column)
    op.create_index("ix_videos_change_seq", "videos", ["change_seq"])
    clock = op.create_table(
        "catalogue_clock",
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_catalogue_clock"),
    )
    op.bulk_insert(clock, [{"seq": 0}])
    op.create_table(
        "clip_vectors",
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("clip_model", sa.String(64), nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("video_id", name="pk_clip_vectors"),
    )
    op.create_table(
        "embedding_queue",
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("clip_model", sa.String(64), nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.SmallInteger, nullable=False),
        sa.PrimaryKeyConstraint("video_id", name="pk_embedding_queue"),
    )
    op.create_table(
        "files_to_remove",
        sa.Column("seq", _SEQ, autoincrement=True, nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_files_to_remove"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "uploads",
        sa.Column("upload_id", sa.Uuid, nullable=False),
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("received_bytes", sa.BigInteger, nullable=False),
        sa.Column("problem", sa.String(64), nullable=False),
        sa.Column("reason", sa.String(512), nullable=False),
        sa.Column("update_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("upload_id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_video_id", "uploads", ["video_id"])
    op.create_index("ix_uploads_update_time_us", "uploads", ["update_time_us"])
    op.create_table(
        "video_requests",
        sa.Column("request_id", sa.Uuid, nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("video_id", _ID, nullable=False),
        sa.Column("create_time_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_video_requests"),
    )
    op.create_index("ix_video_requests_create_time_us", "video_requests", ["create_time_us"])
