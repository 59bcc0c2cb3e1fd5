"""The SQL tables, as queries see them. Times are integer microseconds since the Unix epoch, in UTC.

The migrations make them (`keek_server.storage.migrations`). On PostgreSQL they partition
`interactions` and `exposures` by month (`keek_server.storage.partitions`).
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Uuid,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the key is spelled INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")
_Id = String(128)

log_identity = Table(
    "log_identity",
    metadata,
    # One row. Names this log, so that a projection of another one is recognised.
    Column("log_id", String(32), primary_key=True),
    # Rows up to this sequence number are gone by retention: a projection that still counts them
    # is not what a replay would give.
    Column("pruned_seq", BigInteger, nullable=False),
)

videos = Table(
    "videos",
    metadata,
    Column("video_id", _Id, primary_key=True),
    Column("owner_id", _Id, nullable=False, index=True),
    Column("tags", JSON, nullable=False),
    Column("duration_s", Float, nullable=False),
    Column("title", String(512), nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    # VideoState. A deleted video keeps its row, which tells every server of the deletion.
    Column("state", SmallInteger, nullable=False),
    # When its row changed last, by the catalogue's clock.
    Column("change_seq", BigInteger, nullable=False, index=True),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    # Empty where no file was uploaded.
    Column("original_url", String(2048), nullable=False),
    Column("poster_url", String(2048), nullable=False),
    # A BCP 47 tag; empty when unknown, as the region.
    Column("language", String(35), nullable=False),
    Column("region", String(16), nullable=False),
)

catalogue_clock = Table(
    "catalogue_clock",
    metadata,
    # One row. A transaction that changes videos advances it and so holds it until it commits: changes
    # become visible in the order of their numbers, and who reads on from the last one skips nothing.
    Column("seq", BigInteger, primary_key=True),
)

clip_vectors = Table(
    "clip_vectors",
    metadata,
    Column("video_id", _Id, primary_key=True),
    # ClipVersion.clip_model of the CLIP that made it; empty when it was given on import without.
    Column("clip_model", String(64), nullable=False),
    # 512 float16, little endian.
    Column("vector", LargeBinary, nullable=False),
)

embedding_queue = Table(
    "embedding_queue",
    metadata,
    # Videos whose frames CLIP has yet to see.
    Column("video_id", _Id, primary_key=True),
    # Names the file that is to be seen: the change that stored it.
    Column("token", BigInteger, nullable=False),
    # The CLIP that must see it; empty when any will do.
    Column("clip_model", String(64), nullable=False),
    # Until when the server that took it has it to itself.
    Column("lease_until_us", BigInteger, nullable=False),
    # How often it could not be decoded.
    Column("failures", SmallInteger, nullable=False),
)

files_to_remove = Table(
    "files_to_remove",
    metadata,
    # Files in the store that no video names any more.
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("url", String(2048), nullable=False),
    sqlite_autoincrement=True,
)

uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", Uuid, primary_key=True),
    Column("video_id", _Id, nullable=False, index=True),
    # VideoState.
    Column("state", SmallInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("received_bytes", BigInteger, nullable=False),
    # Why it was rejected: MediaProblem, and a sentence for people.
    Column("problem", String(64), nullable=False),
    Column("reason", String(512), nullable=False),
    Column("update_time_us", BigInteger, nullable=False, index=True),
)

video_requests = Table(
    "video_requests",
    metadata,
    # Requests that were carried out, by their request_id: a repeated one does nothing more.
    Column("request_id", Uuid, primary_key=True),
    Column("method", String(32), nullable=False),
    Column("video_id", _Id, nullable=False),
    Column("create_time_us", BigInteger, nullable=False, index=True),
)

interactions = Table(
    "interactions",
    metadata,
    # The order of the log: the order of commits.
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("event_id", Uuid, nullable=False, unique=True),
    Column("user_id", _Id, nullable=False),
    Column("video_id", _Id, nullable=False),
    # InteractionKind.
    Column("kind", SmallInteger, nullable=False),
    Column("event_time_us", BigInteger, nullable=False),
    Column("record_time_us", BigInteger, nullable=False),
    # What trending is counted by beside everything, as it was when the row was recorded: a video
    # that is tagged anew must not change what a replay gives. Empty when unknown.
    Column("region", String(16), nullable=False),
    Column("tags", JSON, nullable=False),
    # How long the video was watched, of a view or a skip; NULL when unknown.
    Column("watched_ms", Integer),
    Index("ix_interactions_user_id_seq", "user_id", "seq"),
    sqlite_autoincrement=True,
)

releases = Table(
    "releases",
    metadata,
    Column("release_id", String(64), primary_key=True),
    Column("create_time_us", BigInteger, nullable=False),
    Column("manifest", JSON, nullable=False),
    # ReleaseState.
    Column("state", SmallInteger, nullable=False),
)

activations = Table(
    "activations",
    metadata,
    # The newest row is the plan: the active release, and a trial beside it. Those before it are the history.
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("release_id", String(64), nullable=False),
    Column("activate_time_us", BigInteger, nullable=False),
    Column("reason", String(512), nullable=False),
    # Whether it went back: what it went back from is not gone back to again.
    Column("is_rollback", Boolean, nullable=False),
    # Empty without a trial.
    Column("trial_release_id", String(64), nullable=False),
    # TrialKind; 0 without a trial.
    Column("trial_kind", SmallInteger, nullable=False),
    Column("trial_percent", Float, nullable=False),
    # Of the call that made it, which repeated does nothing more.
    Column("request_id", Uuid, index=True, unique=True),
    sqlite_autoincrement=True,
)

servers = Table(
    "servers",
    metadata,
    # A server is one process: a name may come back, this does not.
    Column("server_id", String(64), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("start_time_us", BigInteger, nullable=False),
    Column("heartbeat_time_us", BigInteger, nullable=False),
    # The last plan that it carried out: activations.seq; 0 before the first.
    Column("plan_seq", BigInteger, nullable=False),
    # What it serves; empty when nothing.
    Column("release_id", String(64), nullable=False),
    Column("trial_release_id", String(64), nullable=False),
    # All that it has open, the one before for a rollback included: their files and models must stay.
    Column("held_release_ids", JSON, nullable=False),
    # Why it does not carry out the newest plan; empty when it does.
    Column("problem", String(512), nullable=False),
    # What it measured of each release it serves.
    Column("figures", JSON, nullable=False),
)

exposures = Table(
    "exposures",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    Column("user_id", _Id, nullable=False),
    Column("release_id", String(64), nullable=False),
    Column("serve_time_us", BigInteger, nullable=False),
    # [[video_id, FeedSource, score], ...] in the order shown; with exploration [..., propensity]: how likely
    # the slot was to get this source, null where another one had to fill it. Where its video was drawn by
    # chance, too, [..., propensity, video_propensity]: how likely this video was then.
    Column("slate", JSON, nullable=False),
    # What videos were drawn among, best first (`feed.types.PoolEntry`); NULL where none was.
    Column("pool", JSON(none_as_null=True)),
    # [[experiment_id, arm], ...]; NULL where no experiment took the user.
    Column("arms", JSON(none_as_null=True)),
    # Slots that stood on earlier pages of the session: the mix counts on from there.
    Column("first_slot", Integer, nullable=False),
    # Slots that were asked for.
    Column("slot_count", Integer, nullable=False),
    # From when the request came in until the page was made.
    Column("elapsed_us", Integer, nullable=False),
    # Whether a source could not do its part.
    Column("degraded", Boolean, nullable=False),
    sqlite_autoincrement=True,
)

exposure_writers = Table(
    "exposure_writers",
    metadata,
    # One row of each process that writes exposures. It changes in the transaction that stores a batch, so a
    # batch whose outcome was not told can be repeated: it is known when it is there.
    Column("writer_id", String(32), primary_key=True),
    # The last batch that is stored, from 1 on.
    Column("batch", BigInteger, nullable=False),
    Column("write_time_us", BigInteger, nullable=False),
)

experiments = Table(
    "experiments",
    metadata,
    Column("experiment_id", String(64), primary_key=True),
    # ExperimentState.
    Column("state", SmallInteger, nullable=False, index=True),
    # ExperimentDefinition.
    Column("definition", JSON, nullable=False),
    # [[first, end], ...]: the ranges of its layer's buckets whose users it takes; empty before it starts.
    Column("buckets", JSON, nullable=False),
    Column("create_time_us", BigInteger, nullable=False),
    # NULL before.
    Column("start_time_us", BigInteger),
    Column("stop_time_us", BigInteger),
    # When the weights changed last while it ran; NULL when they never did.
    Column("weights_time_us", BigInteger),
    # When its figures were last looked at, for guardrails and adaptation; 0 before.
    Column("review_time_us", BigInteger, nullable=False),
    # [[arm, reason, time_us], ...]: what guardrails have stopped.
    Column("stopped_arms", JSON, nullable=False),
    # An arm, or empty.
    Column("winner", String(64), nullable=False),
    Column("conclusion", String(4096), nullable=False),
)
