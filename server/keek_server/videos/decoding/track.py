"""Opens a file with FFmpeg and reads its video stream, without decoding a picture of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.avi import avi_claims
from keek_server.videos.decoding.claims import Claims, Reader
from keek_server.videos.decoding.matroska import matroska_claims
from keek_server.videos.decoding.mp4 import mp4_claims
from keek_server.videos.decoding.sniff import HEAD_BYTES, Container, sniff_video
from keek_server.videos.decoding.transport_stream import transport_stream_claims
from keek_server.videos.decoding.types import Limits

if TYPE_CHECKING:
    VideoPacket = Packet[VideoStream]
else:
    VideoPacket = Packet  # is generic for type checkers alone

_CLAIMS: dict[str, Callable[[Reader], Claims]] = {
    "mov": mp4_claims,
    "matroska": matroska_claims,
    "avi": avi_claims,
    "mpegts": transport_stream_claims,
}
_DECODERS = {"av1": "libdav1d"}
_EDGES = 256
_MOST_INFLATED = 4
_BUFFER_BYTES = 256 * 1024
_FALLBACK_RATE = Fraction(25)
_RATE_TOLERANCE = 1.02
_SHORT_BY = 0.9
"""A stream that is over before this share of what was declared, and a second early, was cut off."""


@dataclass(slots=True)
class Track:
    """A video stream, all of it in memory, still encoded."""

    container: Container
    opened: InputContainer
    stream: VideoStream
    codec: str
    packets: list[VideoPacket]
    """In the order of decoding."""
    times_s: list[float]
    """When each packet's picture is shown, as the file says it: the first need not be at 0."""
    start_s: float
    duration_s: float
    frame_rate: float
    """Average, frames a second."""


def open_track(file: BinaryIO, size_bytes: int, limits: Limits) -> Track:
    """Chooses and reads the video stream of a file, and holds it against the limits.

    Args:
        file: Seekable.
        size_bytes: Its length.

    Raises:
        BadMediaError: It is refused, whatever the reason, other than that its pictures are damaged.
    """
    container = sniff_video(file.read(HEAD_BYTES))
    claims = _CLAIMS[container.demuxer](Reader(file, size_bytes))
    if claims.ends_early:
        raise BadMediaError(MediaProblem.TRUNCATED, "its end is missing")
    if claims.elsewhere:
        raise BadMediaError(MediaProblem.UNSUPPORTED_FORMAT, "its pictures are in another file")
    check_size(claims.width, claims.height, limits)
    _check_duration(claims.duration_s, limits)
    file.seek(0)
    try:
        opened = _open(file, container, limits)
        stream = _choose_stream(opened)
        codec = _check_codec(stream, limits)
        check_size(stream.codec_context.width, stream.codec_context.height, limits)
        _check_duration(_declared_s(opened, container), limits)
        _check_index(stream, container, size_bytes)
        packets, end_s = _read(opened, stream, size_bytes, limits)
    except FFmpegError as error:
        _refuse(error)
    return _timed(container, opened, stream, codec, packets, end_s, limits)


def check_size(width: int, height: int, limits: Limits) -> None:
    """
    Raises:
        BadMediaError: TOO_LARGE, when a side is longer than allowed.
    """
    if max(width, height) > limits.max_side_pixels:
        sides = f"{width} x {height} pixels are more than the {limits.max_side_pixels} allowed a side"
        raise BadMediaError(MediaProblem.TOO_LARGE, sides)


def max_pixels(limits: Limits) -> str:
    """FFmpeg's option: what is larger is refused before it is allocated.

    Some decoders hold the edges that they add against it, so the exact limit is `check_size`.
    """
    return str((limits.max_side_pixels + _EDGES) ** 2)


def _check_duration(duration_s: float, limits: Limits) -> None:
    if not duration_s <= limits.max_duration_s:
        text = f"{duration_s:,.0f} s are more than the {limits.max_duration_s:g} s allowed"
        raise BadMediaError(MediaProblem.TOO_LONG, text)


def _refuse(error: FFmpegError) -> NoReturn:
    if isinstance(error, MemoryError):
        raise error
    raise BadMediaError(MediaProblem.CORRUPT, f"it cannot be read: {error.strerror}") from error


def _open(file: BinaryIO, container: Container, limits: Limits) -> InputContainer:
    decoders = [_DECODERS.get(codec, codec) for codec in limits.codecs]
    options = {
        "format_whitelist": container.demuxer,
        "protocol_whitelist": "none",
        # Sound is never decoded, not even to find out what it is.
        "codec_whitelist": ",".join(decoders),
        "max_pixels": max_pixels(limits),
        "threads": "1",
    }
    return av.open(
        file,
        "r",
        format=container.demuxer,
        options=options,
        metadata_errors="replace",
        buffer_size=_BUFFER_BYTES,
        io_open=_refuse_other_files,
    )


def _refuse_other_files(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    raise BadMediaError(MediaProblem.UNSUPPORTED_FORMAT, f"it asks for another file: {url[:80]}")


def _choose_stream(opened: InputContainer) -> VideoStream:
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [one for one in opened.streams.video if not one.disposition & covers]
    if not streams:
        kinds = sorted({stream.type for stream in opened.streams if stream.type})
        text = f"only {' and '.join(kinds)}" if kinds else "nothing"
        raise BadMediaError(MediaProblem.NO_VIDEO_STREAM, f"it has no video in it, {text}")
    return max(streams, key=lambda one: (bool(one.disposition & Disposition.default), _area(one)))


def _area(stream: VideoStream) -> int:
    context = stream.codec_context
    return context.width * context.height if context else 0


def _check_codec(stream: VideoStream, limits: Limits) -> str:
    # PyAV knows no context where this build of FFmpeg has no decoder at all.
    context = stream.codec_context
    name = context.codec.canonical_name if context else "unknown"
    if name not in limits.codecs:
        taken = ", ".join(sorted(limits.codecs))
        raise BadMediaError(MediaProblem.UNSUPPORTED_CODEC, f"its codec is {name}; taken are {taken}")
    return name


def _declared_s(opened: InputContainer, container: Container) -> float:
    """What the header says; of transport streams, which have none, FFmpeg guesses."""
    if not opened.duration or container.demuxer == "mpegts":
        return 0.0
    # What Matroska's muxers write as the duration is when the last picture ends.
    start = opened.start_time or 0 if container.demuxer == "matroska" else 0
    return max(0, opened.duration - max(0, start)) / av.time_base


def _check_index(stream: VideoStream, container: Container, size_bytes: int) -> None:
    """An MP4 file says of every picture where it is, so one look tells what is missing."""
    if container.demuxer != "mov":
        return
    if any(entry.pos + entry.size > size_bytes for entry in stream.index_entries):
        raise BadMediaError(MediaProblem.TRUNCATED, "its end is missing")


def _read(
    opened: InputContainer, video: VideoStream, size_bytes: int, limits: Limits
) -> tuple[list[VideoPacket], float]:
    """The packets of the video stream, and when the last of any stream is over."""
    packets: list[VideoPacket] = []
    start_s, end_s, total_bytes = math.inf, -math.inf, 0
    for packet in opened.demux():
        if not packet.size:
            continue
        total_bytes += packet.size
        if packet.stream is video:
            packets.append(cast("VideoPacket", packet))
        _check_amount(len(packets), total_bytes, size_bytes, limits)
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base:
            at_s = float(time * packet.time_base)
            start_s = min(start_s, at_s)
            end_s = max(end_s, at_s + float((packet.duration or 0) * packet.time_base))
    if not packets:
        raise BadMediaError(MediaProblem.CORRUPT, "its video stream is empty")
    return packets, end_s - start_s


def _check_amount(frames: int, total_bytes: int, size_bytes: int, limits: Limits) -> None:
    if frames > limits.max_frames:
        text = f"it has more than the {limits.max_frames:,} frames allowed"
        raise BadMediaError(MediaProblem.TOO_MANY_FRAMES, text)
    # Matroska may compress packets as archives do, and an index may name the same bytes many times.
    if total_bytes > _MOST_INFLATED * size_bytes + _BUFFER_BYTES:
        raise BadMediaError(MediaProblem.DECODE_BOMB, "it holds far more than its size")


def _timed(
    container: Container,
    opened: InputContainer,
    stream: VideoStream,
    codec: str,
    packets: list[VideoPacket],
    measured_s: float,
    limits: Limits,
) -> Track:
    declared_s = _declared_s(opened, container)
    if measured_s < _SHORT_BY * declared_s and declared_s - measured_s > 1.0:
        text = f"of {declared_s:.1f} s only {max(measured_s, 0):.1f} s are there"
        raise BadMediaError(MediaProblem.TRUNCATED, text)
    times_s = _times_s(stream, packets)
    shown = [time for time, packet in zip(times_s, packets, strict=True) if not packet.is_discard] or times_s
    start_s, last_s = min(shown), max(shown)
    rate = _rate(stream, len(shown), last_s - start_s, limits)
    last_for_s = float((packets[-1].duration or 0) * (packets[-1].time_base or 0)) or 1 / rate
    duration_s = last_s - start_s + last_for_s
    _check_duration(duration_s, limits)
    return Track(container, opened, stream, codec, packets, times_s, start_s, duration_s, rate)


def _times_s(stream: VideoStream, packets: list[VideoPacket]) -> list[float]:
    """Presentation times; where the file has none, decoding times, or the pace of the stream."""
    base = float(stream.time_base or 0)
    pace_s = 1 / float(stream.average_rate or _FALLBACK_RATE)
    times: list[float] = []
    for packet in packets:
        time = packet.pts if packet.pts is not None else packet.dts
        previous_s = times[-1] if times else -pace_s
        times.append(time * base if time is not None and base else previous_s + pace_s)
    return times


def _rate(stream: VideoStream, count: int, span_s: float, limits: Limits) -> float:
    if count == 1:
        return min(float(stream.average_rate or _FALLBACK_RATE), limits.max_frame_rate)
    rate = (count - 1) / span_s if span_s > 0 else math.inf
    if rate > limits.max_frame_rate * _RATE_TOLERANCE:
        text = f"{rate:,.0f} frames a second are more than the {limits.max_frame_rate:g} allowed"
        raise BadMediaError(MediaProblem.TOO_MANY_FRAMES, text)
    return rate
