"""What is asked of the child process, and within which bounds; plain data that becomes JSON."""

from dataclasses import dataclass
from typing import Literal

ResizeMode = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, slots=True)
class FrameShape:
    """The square pictures that a CLIP image tower takes, as open_clip's `PreprocessCfg` says it."""

    size: int
    """Pixels of a side."""
    resize_mode: ResizeMode = "shortest"
    """`shortest`: the shorter side becomes `size`, the middle is kept. `longest`: the longer side
    becomes `size`, black is added. `squash`: both sides become `size`."""
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one file; `Settings` documents each under the same name."""

    max_duration_s: float
    max_side_pixels: int
    max_frame_rate: float
    max_frames: int
    verify_pixels: int
    codecs: tuple[str, ...]
    cpu_s: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with the file that comes with it."""

    kind: Literal["video", "image"]
    size_bytes: int
    """Of the file."""
    shape: FrameShape | None
    """Of the frames; only the poster is made when it is None."""
    count: int
    """The most frames."""
    limits: Limits


@dataclass(frozen=True, slots=True)
class Summary:
    """What the child says of a video, beside its frames and its poster."""

    frame_times_s: list[float]
    duration_s: float
    width: int
    height: int
    frame_rate: float
    codec: str
    container: str
    poster_bytes: int
    """Length of the JPEG, which follows the frames."""
