"""Renders small real clips, the same bytes for the same description, for benchmarks and tests.

A clip is a row of scenes; a scene is a hue and one of a few moving patterns on it. What is not
said is drawn from the seed, so `clip_bytes(Clip(seed=7))` is enough for one video more.
"""

import colorsys
import io
import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageDraw

Pattern = Literal["disc", "squares", "stripes", "checkers", "noise"]
Codec = Literal["h264", "hevc", "vp8", "vp9", "mpeg4"]
Container = Literal["mp4", "mov", "webm", "mkv", "avi", "ts"]

PATTERNS: tuple[Pattern, ...] = ("disc", "squares", "stripes", "checkers", "noise")
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp8": "libvpx", "vp9": "libvpx-vp9", "mpeg4": "mpeg4"}
_MUXERS = {"mkv": "matroska", "ts": "mpegts"}
_OPTIONS = {
    # Its code for AVX-512 reads memory that nobody wrote, and no two files are the same.
    "h264": {"preset": "veryfast", "x264-params": "threads=1:cpu-independent=1"},
    "hevc": {"preset": "ultrafast", "x265-params": "pools=none:frame-threads=1:log-level=none"},
    "vp8": {"deadline": "realtime", "cpu-used": "8"},
    "vp9": {"deadline": "realtime", "cpu-used": "8"},
    "mpeg4": {},
}
_SAMPLE_RATE = 48_000
_AUDIO_FRAME = 1024


@dataclass(frozen=True, slots=True)
class Scene:
    """What is to be seen for some time."""

    hue: float
    """Of the background, in [0, 1): 0 is red, 1/3 green, 2/3 blue."""
    pattern: Pattern
    seconds: float
    brightness: float = 1.0
    """0 makes the whole scene black."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What to render."""

    seed: int = 0
    duration_s: float = 2.0
    """Without effect when `scenes` are given."""
    width: int = 320
    height: int = 240
    frame_rate: Fraction | int = 25
    codec: Codec = "h264"
    container: Container = "mp4"
    scenes: tuple[Scene, ...] = ()
    """One scene from the seed when empty."""
    audio: bool = False
    """A tone, as AAC, or as Opus in WebM."""
    key_interval: int = 50
    """Frames from one keyframe to the next, at most."""
    rotation: int = 0
    """Degrees, counterclockwise, that a player is asked to turn the picture by: 0, 90, 180, 270."""
    pixel_format: str = "yuv420p"
    bit_rate: int = 400_000


def clip_bytes(clip: Clip) -> bytes:
    """The file as bytes."""
    buffer = io.BytesIO()
    _render(clip, buffer)
    return buffer.getvalue()


def write_clip(clip: Clip, folder: Path, name: str = "clip") -> Path:
    """The file, under a name that says its container."""
    path = folder / f"{name}.{clip.container}"
    path.write_bytes(clip_bytes(clip))
    return path


def any_scene(seed: int, seconds: float) -> Scene:
    """A scene that the seed chooses."""
    chooser = random.Random(f"scene {seed}")
    return Scene(chooser.random(), chooser.choice(PATTERNS), seconds)


def any_clip(seed: int, duration_s: float = 2.0) -> Clip:
    """A clip whose size, codec, container and looks the seed chooses; about half have sound."""
    chooser = random.Random(f"clip {seed}")
    kinds: list[tuple[Codec, Container]] = [
        ("h264", "mp4"),
        ("h264", "mkv"),
        ("vp8", "webm"),
        ("mpeg4", "mp4"),
    ]
    codec, container = chooser.choice(kinds)
    width, height = chooser.choice([(320, 240), (426, 240), (240, 426), (640, 360)])
    return Clip(
        seed=seed,
        duration_s=duration_s,
        width=width,
        height=height,
        codec=codec,
        container=container,
        audio=chooser.random() < 0.5,
    )


def pictures(clip: Clip) -> Iterator[Image.Image]:
    """The clip's pictures, RGB, before they are encoded."""
    rate = float(clip.frame_rate)
    number = 0
    for scene in clip.scenes or (any_scene(clip.seed, clip.duration_s),):
        for _ in range(max(1, round(scene.seconds * rate))):
            yield _draw(scene, clip, number / rate)
            number += 1


def _render(clip: Clip, target: BinaryIO) -> None:
    muxer = _MUXERS.get(clip.container, clip.container)
    options = {"fflags": "+bitexact"}
    with av.open(target, "w", format=muxer, options=options) as opened:
        output = cast("OutputContainer", opened)
        video = _add_video(output, clip)
        audio = _add_audio(output, clip) if clip.audio else None
        written_s = 0.0
        for number, picture in enumerate(pictures(clip)):
            frame = VideoFrame.from_image(picture).reformat(format=clip.pixel_format, threads=1)
            frame.pts = number
            frame.time_base = 1 / Fraction(clip.frame_rate)
            output.mux(video.encode(frame))
            end_s = float((number + 1) / Fraction(clip.frame_rate))
            if audio is not None:
                written_s = _write_tone(output, audio, clip, written_s, end_s)
        output.mux(video.encode(None))
        if audio is not None:
            output.mux(audio.encode(None))


def _add_video(output: OutputContainer, clip: Clip) -> VideoStream:
    stream = cast("VideoStream", output.add_stream(_ENCODERS[clip.codec], Fraction(clip.frame_rate)))
    stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, clip.pixel_format
    context = stream.codec_context
    context.thread_count = 1
    context.bit_rate = clip.bit_rate
    context.gop_size = clip.key_interval
    context.options = dict(_OPTIONS[clip.codec])
    context.flags |= av.codec.context.Flags.bitexact
    if clip.rotation:
        stream.set_display_rotation(clip.rotation)
    return stream


def _add_audio(output: OutputContainer, clip: Clip) -> AudioStream:
    codec = "libopus" if clip.container == "webm" else "aac"
    stream = cast("AudioStream", output.add_stream(codec, _SAMPLE_RATE))
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    return stream


def _write_tone(
    output: OutputContainer, stream: AudioStream, clip: Clip, from_s: float, to_s: float
) -> float:
    """Adds sound until there is as much of it as of pictures."""
    resampler = AudioResampler(stream.codec_context.format, stream.codec_context.layout, _SAMPLE_RATE)
    hertz = 220 + clip.seed % 440
    while from_s < to_s:
        start = round(from_s * _SAMPLE_RATE)
        angle = 2 * math.pi * hertz / _SAMPLE_RATE
        samples = array("h", (round(8000 * math.sin(angle * (start + i))) for i in range(_AUDIO_FRAME)))
        frame = AudioFrame(format="s16", layout="mono", samples=_AUDIO_FRAME)
        frame.planes[0].update(samples.tobytes())
        frame.sample_rate, frame.pts, frame.time_base = _SAMPLE_RATE, start, Fraction(1, _SAMPLE_RATE)
        for resampled in resampler.resample(frame):
            output.mux(stream.encode(resampled))
        from_s = (start + _AUDIO_FRAME) / _SAMPLE_RATE
    return from_s


def _draw(scene: Scene, clip: Clip, time_s: float) -> Image.Image:
    size = clip.width, clip.height
    back = _colour(scene.hue, 0.7, 0.75 * scene.brightness)
    front = _colour(scene.hue + 0.5, 0.6, 0.95 * scene.brightness)
    picture = Image.new("RGB", size, back)
    _PAINTERS[scene.pattern](picture, front, time_s, clip.seed)
    return picture


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _disc(picture: Image.Image, colour: tuple[int, int, int], time_s: float, seed: int) -> None:
    width, height = picture.size
    radius = min(width, height) / 5
    x = width / 2 + (width / 2 - radius) * math.cos(time_s * 1.3 + seed)
    y = height / 2 + (height / 2 - radius) * math.sin(time_s * 1.7 + seed)
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _squares(picture: Image.Image, colour: tuple[int, int, int], time_s: float, seed: int) -> None:
    width, height = picture.size
    side = min(width, height) / 6
    draw = ImageDraw.Draw(picture)
    for i in range(5):
        x = (seed * 37 + i * width / 5 + 60 * time_s * (1 + i % 3)) % (width + side) - side
        y = (i + 0.5) * height / 5 - side / 2
        draw.rectangle((x, y, x + side, y + side), fill=colour)


def _stripes(picture: Image.Image, colour: tuple[int, int, int], time_s: float, seed: int) -> None:
    width, height = picture.size
    step = max(8, width // 8)
    shift = (seed * 11 + 50 * time_s) % step
    draw = ImageDraw.Draw(picture)
    for i in range(-height // step - 1, width // step + 1):
        x = i * step + shift
        draw.line((x, height, x + height, 0), fill=colour, width=step // 3)


def _checkers(picture: Image.Image, colour: tuple[int, int, int], time_s: float, seed: int) -> None:
    width, height = picture.size
    side = max(8, min(width, height) // 6)
    shift = (seed * 7 + 30 * time_s) % (2 * side)
    draw = ImageDraw.Draw(picture)
    for row in range(-2, height // side + 1):
        for column in range(-2, width // side + 1):
            if (row + column) % 2 == 0:
                x, y = column * side + shift, row * side + shift
                draw.rectangle((x, y, x + side - 1, y + side - 1), fill=colour)


def _noise(picture: Image.Image, colour: tuple[int, int, int], time_s: float, seed: int) -> None:
    grain = random.Random(f"{seed} {time_s:.4f}")
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    for _ in range(150):
        x, y = grain.randrange(width), grain.randrange(height)
        draw.rectangle((x, y, x + width // 30, y + height // 30), fill=colour)


_PAINTERS = {"disc": _disc, "squares": _squares, "stripes": _stripes, "checkers": _checkers, "noise": _noise}
