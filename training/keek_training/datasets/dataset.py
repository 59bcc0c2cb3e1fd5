"""What every reader returns and everything else takes: videos and interactions as Arrow tables."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from keek_server.towers.features import Float16Array

VIDEO_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("owner_id", pa.string(), nullable=False),  # empty when unknown
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("duration_s", pa.float32(), nullable=False),  # 0 when unknown
        pa.field("title", pa.string(), nullable=False),
        pa.field("create_time_us", pa.int64(), nullable=False),
        pa.field("language", pa.string(), nullable=False),  # a BCP 47 tag; empty when unknown
        pa.field("region", pa.string(), nullable=False),  # empty when unknown
    ]
)
"""One row a video, video_id unique. Times are microseconds since the Unix epoch, in UTC."""

INTERACTION_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),  # keek_server.interactions.kinds.InteractionKind
        pa.field("event_time_us", pa.int64(), nullable=False),
    ]
)
"""One row an interaction, sorted by event_time_us."""

INTERACTION_EXTRAS = pa.schema(
    [
        pa.field("event_id", pa.string()),  # a UUID; null where the row has none
        pa.field("region", pa.string(), nullable=False),  # empty when unknown
        pa.field("watched_ms", pa.int32()),  # of a view or a skip; null when unknown
    ]
)
"""What interactions may have besides: each column is there, or not, as in the data."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One line or row that could not be read; the others were."""

    file: Path
    line: int
    """1-based; for a table, its row."""
    reason: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """Videos (VIDEO_SCHEMA) and interactions (INTERACTION_SCHEMA), and what was left out.

    The interactions may have columns of INTERACTION_EXTRAS, too.
    """

    name: str
    videos: pa.Table
    interactions: pa.Table
    problems: list[Problem] = field(default_factory=list)
    clip_vectors: Float16Array | None = None
    """float16 [videos, CLIP_DIMENSION], zeros where a video has none; None when none has."""
