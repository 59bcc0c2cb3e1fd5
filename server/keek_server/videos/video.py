"""A video as the catalogue knows it."""

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple


class VideoState(IntEnum):
    """How far a video is, numbered as in `keek.v1.VideoState`."""

    UPLOADING = 1
    DECODING = 2
    EMBEDDING = 3
    READY = 4
    REJECTED = 5
    DELETED = 100
    """Never told to callers: for them it does not exist."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video's metadata."""

    video_id: str
    owner_id: str
    """Empty when unknown."""
    tags: list[str]
    duration_s: float
    """0 when unknown."""
    title: str
    create_time_us: int
    state: VideoState = VideoState.READY
    width: int = 0
    """Pixels, as shown; 0 without a file, as the height."""
    height: int = 0
    original_url: str = ""
    """Empty without a file, as the poster's."""
    poster_url: str = ""
    language: str = ""
    """A BCP 47 tag; empty when unknown, as the region."""
    region: str = ""

    def as_row(self) -> dict[str, Any]:
        """Its columns by name; what `asdict` gives, without copies of it all."""
        return {name: getattr(self, name) for name in _COLUMNS}


_COLUMNS = tuple(field.name for field in fields(Video))


class Brief(NamedTuple):
    """What the request path needs to know of a video."""

    owner_id: str
    tags: tuple[str, ...]


class ClipVector(NamedTuple):
    """A video's clip vector as it is stored."""

    clip_model: str
    """Of the CLIP that made it; empty when that was not said."""
    content: bytes
    """float16 [CLIP_DIMENSION], little endian, of length 1."""
