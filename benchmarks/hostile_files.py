"""Makes files that are broken, or made to break what reads them, from small real clips.

Each is made by editing the very bytes that a reader trusts: headers, indexes, sizes.
"""

import io
import random
import struct
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from benchmarks.clips import Clip, clip_bytes
from keek_server.errors import MediaProblem as Problem

_MP4 = Clip(seed=1)
_WEBM = Clip(seed=2, codec="vp8", container="webm")
_AVI = Clip(seed=3, codec="mpeg4", container="avi")
_TS = Clip(seed=4, container="ts")
_HUGE = 16_384
_TEN_HOURS_S = 36_000
_BOMB_FRAMES = 30_000
_BOMB_SIDE = 4096


@dataclass(frozen=True, slots=True)
class HostileFile:
    """One file, and what a reader may say of it."""

    name: str
    make: Callable[[], bytes]
    reasons: frozenset[Problem]
    """Where several are right, the reader may find either problem first."""

    def write(self, folder: Path) -> Path:
        """Makes the file in a folder."""
        path = folder / self.name
        path.write_bytes(self.make())
        return path


def hostile_files() -> Iterator[HostileFile]:
    """All of them; each is made when `make` is called, the same at every call."""
    groups = (_no_videos(), _playlists(), _truncated(), _oversized(), _bombs(), _corrupted(), _unsupported())
    for group in groups:
        for name, make, *reasons in group:
            yield HostileFile(name, make, frozenset(reasons))


_Row = tuple[str, Callable[[], bytes], *tuple[Problem, ...]]


def _no_videos() -> list[_Row]:
    return [
        ("empty.mp4", lambda: b"", Problem.NOT_A_VIDEO),
        ("text.mp4", lambda: b"This is no video.\n" * 100, Problem.NOT_A_VIDEO),
        ("zeros.mp4", lambda: bytes(100_000), Problem.NOT_A_VIDEO),
        ("random.mp4", lambda: b"\x8f" + random.Random(1).randbytes(100_000), Problem.NOT_A_VIDEO),
        ("image.mp4", _jpeg, Problem.NOT_A_VIDEO),
        ("zip.mp4", lambda: b"PK\x03\x04" + zlib.compress(bytes(10**6)), Problem.NOT_A_VIDEO),
        ("sound.mp4", _sound_in_mp4, Problem.NO_VIDEO_STREAM),
        ("sound.wav", _wave, Problem.NO_VIDEO_STREAM),
    ]


def _playlists() -> list[_Row]:
    hls = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n%s\n#EXT-X-ENDLIST\n"
    dash = (
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        b"<BaseURL>http://127.0.0.1:9/</BaseURL></Period></MPD>"
    )
    smuggled = b"\0\0\0\x10ftypisom\0\0\0\0" + hls % b"file:///etc/passwd"
    return [
        ("hls-file.mp4", lambda: hls % b"file:///etc/passwd", Problem.NOT_A_VIDEO),
        ("hls-url.m3u8", lambda: hls % b"http://127.0.0.1:9/x.ts", Problem.NOT_A_VIDEO),
        ("concat.mp4", lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", Problem.NOT_A_VIDEO),
        ("dash.mpd", lambda: dash, Problem.NOT_A_VIDEO),
        ("hls-behind-ftyp.mp4", lambda: smuggled, Problem.TRUNCATED, Problem.CORRUPT),
        ("other-file.mov", _data_elsewhere, Problem.UNSUPPORTED_FORMAT),
    ]


def _truncated() -> list[_Row]:
    return [
        ("half.mp4", lambda: _cut(clip_bytes(_MP4), 0.5), Problem.TRUNCATED),
        ("half-index-first.mp4", lambda: _cut(_index_first(), 0.6), Problem.TRUNCATED),
        ("last-byte.mp4", lambda: _index_first()[:-1], Problem.TRUNCATED),
        ("no-index.mp4", _without_index, Problem.TRUNCATED),
        ("half.webm", lambda: _cut(clip_bytes(_WEBM), 0.5), Problem.TRUNCATED),
        ("broken-packet.ts", lambda: clip_bytes(_TS)[: 188 * 20 + 90], Problem.TRUNCATED),
        ("half.avi", lambda: _cut(clip_bytes(_AVI), 0.5), Problem.TRUNCATED),
    ]


def _oversized() -> list[_Row]:
    return [
        ("16k-header.mp4", _huge_header, Problem.TOO_LARGE),
        ("16k-header.webm", _huge_matroska, Problem.TOO_LARGE),
        ("16k-pictures.webm", _huge_pictures, Problem.TOO_LARGE),
        ("ten-hours.mp4", _ten_hours, Problem.TOO_LONG),
        ("ten-hours.webm", _ten_hours_matroska, Problem.TOO_LONG),
        ("ten-hour-frames.mp4", _slow_frames, Problem.TOO_LONG),
        ("million-a-second.mp4", _fast_frames, Problem.TOO_MANY_FRAMES),
        ("too-many-bytes.mp4", lambda: _index_first() + bytes(257 * 2**20), Problem.TOO_LARGE),
    ]


def _bombs() -> list[_Row]:
    return [
        ("inflating-packets.mkv", _inflating, Problem.DECODE_BOMB),
        ("endless-index.mp4", _endless_index, Problem.DECODE_BOMB, Problem.CORRUPT, Problem.TRUNCATED),
        ("nested-boxes.mp4", _nested_boxes, Problem.NO_VIDEO_STREAM, Problem.CORRUPT),
        ("tiny-boxes.mp4", _tiny_boxes, Problem.CORRUPT),
        ("empty-pictures.webm", _empty_pictures, Problem.DECODE_BOMB),
    ]


def _corrupted() -> list[_Row]:
    rows: list[_Row] = []
    for seed, clip in enumerate((_MP4, _MP4, _MP4, _AVI, _AVI, replace(_MP4, container="mkv"))):
        reasons = (Problem.CORRUPT, Problem.TRUNCATED, Problem.TOO_LONG, Problem.NO_VIDEO_STREAM)
        name = f"corrupted-{seed}.{clip.container}"
        rows.append((name, lambda clip=clip, seed=seed: _scatter(clip_bytes(clip), seed), *reasons))
    return rows


def _unsupported() -> list[_Row]:
    return [
        ("motion-jpeg.avi", lambda: _other_codec("mjpeg", "avi", "yuvj420p"), Problem.UNSUPPORTED_CODEC),
        ("lossless.mkv", lambda: _other_codec("ffv1", "matroska", "yuv420p"), Problem.UNSUPPORTED_CODEC),
        ("flash.flv", lambda: _other_codec("flv", "flv", "yuv420p"), Problem.UNSUPPORTED_FORMAT),
    ]


# -- no videos ------------------------------------------------------------------------------------


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((320, 240), 80).save(buffer, "JPEG")
    return buffer.getvalue()


def _wave() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(random.Random(2).randbytes(16_000))
    return buffer.getvalue()


def _sound_in_mp4() -> bytes:
    """The sound of a clip, copied into a file of its own."""
    source = av.open(io.BytesIO(clip_bytes(replace(_MP4, audio=True))))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def _other_codec(encoder: str, muxer: str, pixel_format: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as target:
        stream = target.add_stream(encoder, 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for _ in range(10):
            frame = av.VideoFrame(64, 48, pixel_format)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return buffer.getvalue()


# -- cut and damaged ------------------------------------------------------------------------------


def _cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def _scatter(content: bytes, seed: int) -> bytes:
    """Other bytes at twenty places, the first few and the last few left alone."""
    chooser = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(20):
        at = chooser.randrange(len(damaged) // 50, len(damaged) * 49 // 50)
        damaged[at : at + 8] = chooser.randbytes(8)
    return bytes(damaged)


def _index_first() -> bytes:
    """The clip with its index before its pictures."""
    source = av.open(io.BytesIO(clip_bytes(_MP4)))
    with tempfile.TemporaryDirectory() as folder:
        # Not in memory: to move the index, the muxer opens what it wrote once more.
        path = Path(folder) / "clip.mp4"
        with av.open(path, "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        return path.read_bytes()


def _without_index() -> bytes:
    content = clip_bytes(_MP4)
    return content[: content.index(b"moov") - 4]


# -- headers that lie -----------------------------------------------------------------------------


def _edit(content: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """Writes over what is `offset` bytes behind the name of a box, wherever there is one."""
    edited = bytearray(content)
    at = content.find(box)
    assert at >= 0, box
    while at >= 0:
        edited[at + 4 + offset : at + 4 + offset + len(value)] = value
        at = content.find(box, at + 1)
    return bytes(edited)


def _huge_header() -> bytes:
    side = struct.pack(">I", _HUGE << 16)
    content = _edit(clip_bytes(_MP4), b"tkhd", 76, side + side)
    return _edit(content, b"avc1", 24, struct.pack(">HH", _HUGE, _HUGE))


def _huge_matroska() -> bytes:
    width = b"\xb0\x82" + struct.pack(">H", _WEBM.width)
    content = clip_bytes(_WEBM)
    assert width in content
    return content.replace(width, b"\xb0\x82" + struct.pack(">H", _HUGE), 1)


def _huge_pictures() -> bytes:
    """Only the pictures themselves say how large they are: 14 bits a side in VP8."""
    start = b"\x9d\x01\x2a"
    size = start + struct.pack("<HH", _WEBM.width, _WEBM.height)
    content = clip_bytes(_WEBM)
    assert size in content
    return content.replace(size, start + struct.pack("<HH", 16_383, 16_383))


def _ten_hours() -> bytes:
    content = clip_bytes(_MP4)
    for box in (b"mvhd", b"mdhd"):
        at = content.index(box) + 4
        timescale = int.from_bytes(content[at + 12 : at + 16], "big")
        content = _edit(content, box, 16, struct.pack(">I", timescale * _TEN_HOURS_S))
    return content


def _ten_hours_matroska() -> bytes:
    content = clip_bytes(_WEBM)
    at = content.index(b"\x44\x89\x88")
    return content[: at + 3] + struct.pack(">d", _TEN_HOURS_S * 1000.0) + content[at + 11 :]


def _slow_frames() -> bytes:
    """Not the header but the pictures' own times say ten hours; the header says nothing."""
    clip = replace(_MP4, frame_rate=Fraction(1, 720), duration_s=_TEN_HOURS_S)
    content = clip_bytes(clip)
    return _edit(_edit(content, b"mvhd", 16, bytes(4)), b"mdhd", 16, bytes(4))


def _fast_frames() -> bytes:
    return clip_bytes(replace(_MP4, frame_rate=1_000_000, duration_s=50e-6))


def _data_elsewhere() -> bytes:
    """A QuickTime file whose samples are said to be in another one."""
    content = clip_bytes(replace(_MP4, container="mov"))
    at = content.index(b"dref") + 4
    kind = content.index(b"url ", at) if b"url " in content[at : at + 40] else content.index(b"alis", at)
    return content[: kind + 4] + bytes(4) + content[kind + 8 :]


# -- bombs ----------------------------------------------------------------------------------------


def _endless_index() -> bytes:
    """Two thousand million samples, all of one size, at one place."""
    content = clip_bytes(_MP4)
    content = _edit(content, b"stsz", 4, struct.pack(">II", 1, 0x7FFF_FFFF))
    return _edit(content, b"stts", 4, struct.pack(">III", 1, 0x7FFF_FFFF, 1))


def _nested_boxes() -> bytes:
    depth = 20_000
    boxes = b"".join(struct.pack(">I4s", 8 * (depth - i), b"trak") for i in range(depth))
    return b"\0\0\0\x10ftypisom\0\0\0\0" + struct.pack(">I4s", 8 + len(boxes), b"moov") + boxes


def _tiny_boxes() -> bytes:
    return b"\0\0\0\x10ftypisom\0\0\0\0" + struct.pack(">I4s", 8, b"free") * 2_000_000


def _empty_pictures() -> bytes:
    """Thousands of pictures of 4096 x 4096 pixels, each some hundred bytes that say: as before."""
    clip = Clip(width=_BOMB_SIDE, height=_BOMB_SIDE, codec="vp8", container="webm", bit_rate=10_000)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as target:
        stream = target.add_stream("libvpx", 60)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.options = {"deadline": "realtime", "cpu-used": "16", "error-resilient": "1"}
        packets = [bytes(packet) for _ in range(4) for packet in stream.encode(_grey_frame())]
        for number in range(_BOMB_FRAMES):
            packet = av.Packet(packets[min(number, len(packets) - 1)])
            packet.stream, packet.time_base, packet.pts = stream, Fraction(1, 60), number
            packet.dts, packet.is_keyframe = number, number == 0
            target.mux(packet)
    return buffer.getvalue()


def _grey_frame() -> av.VideoFrame:
    frame = av.VideoFrame(_BOMB_SIDE, _BOMB_SIDE, "yuv420p")
    for plane in frame.planes:
        plane.update(b"\x80" * plane.buffer_size)
    return frame


def _inflating() -> bytes:
    """Matroska whose packets are compressed as in an archive: ten thousand bytes become ten million."""
    packed = zlib.compress(bytes(9_900_000), 9)
    compression = _element(0x6D80, _element(0x6240, _element(0x5034, _element(0x4254, b"\0"))))
    video = _element(0xE0, _element(0xB0, b"\x01\x40") + _element(0xBA, b"\xf0"))
    numbers = _element(0xD7, b"\x01") + _element(0x73C5, b"\x01") + _element(0x83, b"\x01")
    track = _element(0xAE, numbers + _element(0x86, b"V_MPEG4/ISO/ASP") + video + compression)
    blocks = b"".join(
        _element(0xA3, b"\x81" + struct.pack(">hB", number, 0x80) + packed) for number in range(200)
    )
    cluster = _element(0x1F43B675, _element(0xE7, b"\0") + blocks)
    info = _element(0x1549A966, _element(0x2AD7B1, b"\x0f\x42\x40"))
    head = _element(0x1A45DFA3, _element(0x4282, b"matroska"))
    return head + _element(0x18538067, info + _element(0x1654AE6B, track) + cluster)


def _element(kind: int, body: bytes) -> bytes:
    """An EBML element with a size of eight bytes."""
    name = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    return name + (1 << 56 | len(body)).to_bytes(8, "big") + body
