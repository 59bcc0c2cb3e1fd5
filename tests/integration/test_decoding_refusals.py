"""Broken and hostile files: each is refused, with the right reason, and costs only itself."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import pytest
from benchmarks.clips import Clip, write_clip
from benchmarks.hostile_files import HostileFile, hostile_files

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.settings import Settings
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.decoding.types import FrameShape

SHAPE = FrameShape(32)


@pytest.fixture(scope="module")
async def decoder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Decoder]:
    """With little patience: the bombs would take what a processor can give. A busy one gives it slowly."""
    folder = tmp_path_factory.mktemp("decoder")
    async with open_decoder(Settings(data_dir=folder, decode_cpu_s=3, decode_timeout_s=240.0)) as opened:
        yield opened


async def _reason(decoder: Decoder, path: Path) -> MediaProblem:
    with pytest.raises(BadMediaError) as refused:
        await decoder.decode_video(path, SHAPE, 8, field="chunk")
    assert refused.value.violations[0].field == "chunk"
    assert refused.value.violations[0].description
    return refused.value.reason


@pytest.mark.parametrize("file", [*hostile_files()], ids=lambda file: file.name)
async def test_a_hostile_file_is_refused_with_the_right_reason(
    decoder: Decoder, tmp_path: Path, file: HostileFile
) -> None:
    assert await _reason(decoder, file.write(tmp_path)) in file.reasons


@pytest.mark.parametrize(
    ("bound", "reason"),
    [
        ({"video_max_bytes": 10_000}, MediaProblem.TOO_LARGE),
        ({"video_max_duration_s": 1.9}, MediaProblem.TOO_LONG),
        ({"video_max_side_pixels": 319}, MediaProblem.TOO_LARGE),
        ({"video_max_frame_rate": 20.0}, MediaProblem.TOO_MANY_FRAMES),
        ({"video_max_frames": 49}, MediaProblem.TOO_MANY_FRAMES),
        ({"video_codecs": frozenset({"vp8"})}, MediaProblem.UNSUPPORTED_CODEC),
    ],
    ids=lambda bound: next(iter(bound)) if isinstance(bound, dict) else bound,
)
async def test_every_bound_is_a_setting(tmp_path: Path, bound: dict[str, Any], reason: MediaProblem) -> None:
    path = write_clip(Clip(), tmp_path)
    async with open_decoder(Settings(data_dir=tmp_path, decode_workers=1, **bound)) as bounded:
        assert await _reason(bounded, path) is reason


async def test_a_clip_at_the_bounds_is_taken(tmp_path: Path) -> None:
    path = write_clip(Clip(), tmp_path)
    at_the_bounds = Settings(
        data_dir=tmp_path,
        decode_workers=1,
        video_max_bytes=path.stat().st_size,
        video_max_duration_s=2.0,
        video_max_side_pixels=320,
        video_max_frame_rate=25.0,
        video_max_frames=50,
    )
    async with open_decoder(at_the_bounds) as bounded:
        assert len((await bounded.decode_video(path, SHAPE, 8)).frames) == 8


async def test_memory_beyond_the_limit_is_a_bomb(tmp_path: Path) -> None:
    path = write_clip(Clip(width=4096, height=4096, duration_s=0.2, codec="mpeg4", bit_rate=10_000), tmp_path)
    async with open_decoder(Settings(data_dir=tmp_path, decode_memory_mb=64)) as small:
        assert await _reason(small, path) is MediaProblem.DECODE_BOMB
    async with open_decoder(Settings(data_dir=tmp_path)) as usual:
        assert (await usual.decode_video(path, SHAPE, 2)).width == 4096


async def test_a_cover_picture_is_no_video(decoder: Decoder, tmp_path: Path) -> None:
    """A sound file with a cover has a video stream, of a kind."""
    path = tmp_path / "cover.mp4"
    with av.open(write_clip(Clip(audio=True), tmp_path)) as source, av.open(path, "w") as output:
        sound = output.add_stream_from_template(source.streams.audio[0])
        cover = output.add_stream("mjpeg", 25)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame(64, 64, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        output.mux(cover.encode(frame))
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = sound
                output.mux(packet)
        output.mux(cover.encode(None))
    assert await _reason(decoder, path) is MediaProblem.NO_VIDEO_STREAM


async def test_what_is_no_file_is_not_waited_for(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing.mp4", tmp_path / "folder"):
        with pytest.raises(OSError, match=path.name):
            await decoder.decode_video(path, SHAPE, 1)
