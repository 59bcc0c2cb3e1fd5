"""Makes sure that what a child answers is what was asked for; its process may be the file's by then."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.types import FrameShape, Job

MAX_POSTER_BYTES = 2 * 2**20
_MAX_DESCRIPTION = 300
_CONTAINERS = {"mp4", "mov", "3gp", "webm", "mkv", "avi", "ts"}
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """A video, taken apart."""

    frames: npt.NDArray[np.uint8]
    """[n, 3, size, size], RGB, in order of time. At most as many as were asked for; none when no shape
    was given."""
    frame_times_s: tuple[float, ...]
    """When each is shown; the video begins at 0."""
    poster_jpeg: bytes
    """A good frame, upright, its longer side at most 720 pixels."""
    duration_s: float
    """Of the pictures, as measured."""
    width: int
    """Pixels, as shown: turned upright, with square pixels."""
    height: int
    frame_rate: float
    """Average, frames a second."""
    codec: str
    """FFmpeg's name, as `h264`."""
    container: str
    """The usual extension of such files, as `mp4`."""


def max_body_bytes(job: Job) -> int:
    """The longest answer that the job may have, beside its head."""
    return _square_bytes(job.shape) * max(job.count, 1) + (MAX_POSTER_BYTES if job.kind == "video" else 0)


def raise_if_refused(head: dict[str, Any], field: str) -> None:
    """
    Raises:
        BadMediaError: The answer says so.
        ValueError: It says so in a way that no child does.
    """
    if "problem" in head:
        description = str(head.get("description"))[:_MAX_DESCRIPTION]
        if not description.isprintable():
            raise ValueError("a description that cannot be read")
        raise BadMediaError(MediaProblem(head["problem"]), description, field=field)


def image_of(body: bytearray, shape: FrameShape) -> npt.NDArray[np.uint8]:
    """
    Raises:
        ValueError: It is none.
    """
    return np.frombuffer(body, np.uint8).reshape(3, shape.size, shape.size)


def video_of(head: dict[str, Any], body: bytearray, job: Job) -> DecodedVideo:
    """
    Raises:
        ValueError: Something about it cannot be.
    """
    times_s = tuple(_number(time_s, 0.0, job.limits.max_duration_s * 2) for time_s in head["frame_times_s"])
    side = job.shape.size if job.shape else 0
    split = len(times_s) * _square_bytes(job.shape)
    poster = bytes(memoryview(body)[split:])
    if len(times_s) > job.count or len(poster) != head["poster_bytes"] or not poster.startswith(_JPEG):
        raise ValueError("frames or a poster that nobody asked for")
    if head["codec"] not in job.limits.codecs or head["container"] not in _CONTAINERS:
        raise ValueError("a codec or a container that is not taken")
    shape = (len(times_s), 3, side, side)
    return DecodedVideo(
        frames=np.frombuffer(memoryview(body)[:split], np.uint8).reshape(shape),
        frame_times_s=times_s,
        poster_jpeg=poster,
        duration_s=_number(head["duration_s"], 0.0, job.limits.max_duration_s),
        width=int(_number(head["width"], 1, 4 * job.limits.max_side_pixels)),
        height=int(_number(head["height"], 1, 4 * job.limits.max_side_pixels)),
        frame_rate=_number(head["frame_rate"], 0.0, job.limits.max_frame_rate * 2),
        codec=head["codec"],
        container=head["container"],
    )


def _square_bytes(shape: FrameShape | None) -> int:
    return 3 * shape.size**2 if shape else 0


def _number(value: object, low: float, high: float) -> float:
    if not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{value!r:.40} where a number from {low} to {high} should be")
    return value
