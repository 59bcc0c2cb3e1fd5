"""Takes a video apart: frames for CLIP, a poster, and what its file says and is."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from av.video.frame import VideoFrame
from PIL.Image import Image, Resampling

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.budget import FEWEST_FOUND, CpuBudget
from keek_server.videos.decoding.frames import FrameReader, cheap_moments, evenly_spaced
from keek_server.videos.decoding.pictures import Painter
from keek_server.videos.decoding.scenes import choose, interest, is_blank
from keek_server.videos.decoding.squares import to_square
from keek_server.videos.decoding.track import Track, open_track
from keek_server.videos.decoding.types import FrameShape, Job, Limits, Summary

POSTER_SIDE = 720
POSTER_QUALITY = 85
_CANDIDATES_A_FRAME = 3
_FEWEST_CANDIDATES = 12
_KEPT_BYTES = 192 * 2**20
"""Of decoded frames that wait until it is decided which are used."""
_BYTES_A_PIXEL = 3
"""The most that is reckoned with; 8-bit 4:2:0 takes half of it."""


class _Look:
    """One frame: small at first, drawn in full when it is wanted or when frames are too large to keep."""

    def __init__(self, time_s: float, frame: VideoFrame, painter: Painter, shape: FrameShape | None) -> None:
        self.time_s = time_s
        self.thumbnail = painter.thumbnail(frame)
        self.shown_size = painter.shown_size(frame)
        self._frame: VideoFrame | None = frame
        self._painter = painter
        self._shape = shape
        self._square = b""
        self._poster: Image | None = None

    def draw(self) -> None:
        """Makes what is needed of the frame, and lets go of it."""
        if self._frame is None:
            return
        picture = self._painter.paint(self._frame)
        if self._shape is not None:
            self._square = to_square(picture, self._shape)
        picture.thumbnail((POSTER_SIDE, POSTER_SIDE), Resampling.BICUBIC)
        self._poster, self._frame = picture, None

    def square(self) -> bytes:
        """uint8 [3, size, size]."""
        self.draw()
        return self._square

    def poster(self) -> bytes:
        """A JPEG."""
        self.draw()
        assert self._poster is not None
        buffer = io.BytesIO()
        self._poster.save(buffer, "JPEG", quality=POSTER_QUALITY)
        return buffer.getvalue()


def decode_video(file: BinaryIO, job: Job) -> tuple[Summary, bytes]:
    """
    Returns:
        What there is to say; then the frames, uint8 [n, 3, size, size], and the poster behind them.

    Raises:
        BadMediaError: It is no video that can be used.
    """
    budget = CpuBudget(job.limits.cpu_s)
    track = open_track(file, job.size_bytes, job.limits)
    count = job.count if job.shape else 0
    looks = _look(track, job, count, budget)
    thumbnails = [look.thumbnail for look in looks]
    chosen = [looks[i] for i in choose(thumbnails, count)] if count else []
    poster = _best(chosen or looks).poster()
    frames = b"".join(look.square() for look in chosen)
    width, height = looks[0].shown_size
    summary = Summary(
        frame_times_s=[_within(track, look.time_s) for look in chosen],
        duration_s=track.duration_s,
        width=width,
        height=height,
        frame_rate=track.frame_rate,
        codec=track.codec,
        container=track.container.extension,
        poster_bytes=len(poster),
    )
    return summary, frames + poster


def _look(track: Track, job: Job, count: int, budget: CpuBudget) -> list[_Look]:
    """Candidates, about three for each frame that is wanted."""
    wanted = max(_CANDIDATES_A_FRAME * count, _FEWEST_CANDIDATES)
    painter = Painter(_pixel_ratio(track))
    reader = FrameReader(track, job.limits, budget)
    looks: list[_Look] = []
    kept_bytes = 0
    for time_s, frame in _frames(reader, track, wanted, job.limits):
        look = _Look(time_s, frame, painter, job.shape)
        kept_bytes += frame.width * frame.height * _BYTES_A_PIXEL
        if kept_bytes > _KEPT_BYTES:
            look.draw()
        looks.append(look)
    if reader.stopped_early and len(looks) < FEWEST_FOUND * min(wanted, len(track.packets)):
        text = f"most of it cannot be seen within {job.limits.cpu_s} s of processor time"
        raise BadMediaError(MediaProblem.DECODE_BOMB, text)
    if not looks:
        raise BadMediaError(MediaProblem.CORRUPT, "not one picture can be decoded")
    return looks


def _frames(
    reader: FrameReader, track: Track, wanted: int, limits: Limits
) -> Iterator[tuple[float, VideoFrame]]:
    context = track.stream.codec_context
    pixels = context.width * context.height * len(track.packets)
    if pixels <= limits.verify_pixels:
        return reader.read_all(evenly_spaced(track, wanted))
    return reader.read_some(cheap_moments(track, wanted))


def _within(track: Track, time_s: float) -> float:
    """Seconds from the beginning; a frame that says otherwise is moved into the video."""
    return round(min(max(time_s - track.start_s, 0.0), track.duration_s), 6)


def _pixel_ratio(track: Track) -> float | None:
    ratio = track.stream.sample_aspect_ratio
    return float(ratio) if ratio else None


def _best(looks: list[_Look]) -> _Look:
    """For the poster; the earliest of equals."""
    return max(looks, key=lambda look: (not is_blank(look.thumbnail), interest(look.thumbnail)))
