"""Videos and images, taken apart by real child processes."""

import io
import os
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from benchmarks.clips import Clip, Scene, clip_bytes, pictures, write_clip
from PIL import Image

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.settings import Settings
from keek_server.videos.decoding.decoder import DecodedVideo, Decoder, open_decoder
from keek_server.videos.decoding.squares import to_square
from keek_server.videos.decoding.types import FrameShape

SHAPE = FrameShape(64)
RED, GREEN, BLUE = 0.0, 1 / 3, 2 / 3


@pytest.fixture(scope="module")
async def decoder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Decoder]:
    async with open_decoder(Settings(data_dir=tmp_path_factory.mktemp("decoder"))) as opened:
        yield opened


@pytest.fixture(scope="module")
async def jumping(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Decoder]:
    """One that never decodes a video whole."""
    folder = tmp_path_factory.mktemp("jumping")
    async with open_decoder(Settings(data_dir=folder, video_verify_pixels=0)) as opened:
        yield opened


async def _decode(decoder: Decoder, folder: Path, clip: Clip, count: int = 8) -> DecodedVideo:
    return await decoder.decode_video(write_clip(clip, folder), SHAPE, count)


def _main_channel(frame: Any) -> int:
    """The colour that most of a frame [3, size, size] has: 0 red, 1 green, 2 blue."""
    return int(np.argmax(np.median(frame.reshape(3, -1), axis=1)))


@pytest.mark.parametrize(
    "clip",
    [
        Clip(audio=True),
        Clip(codec="vp8", container="webm", audio=True),
        Clip(codec="vp9", container="webm"),
        Clip(codec="hevc", container="mkv"),
        Clip(codec="mpeg4", container="avi"),
        Clip(container="mov"),
        Clip(container="ts", audio=True),
    ],
    ids=lambda clip: f"{clip.codec}-{clip.container}",
)
async def test_a_clip_of_every_kind_gives_frames_and_its_measures(
    decoder: Decoder, tmp_path: Path, clip: Clip
) -> None:
    video = await _decode(decoder, tmp_path, clip)
    assert video.frames.shape == (8, 3, 64, 64)
    assert video.frames.dtype == np.uint8
    assert (video.width, video.height) == (320, 240)
    assert (video.codec, video.container) == (clip.codec, clip.container)
    assert video.duration_s == pytest.approx(2.0, abs=0.02)
    assert video.frame_rate == pytest.approx(25.0, rel=0.01)


async def test_frames_are_evenly_spaced_over_one_scene(decoder: Decoder, tmp_path: Path) -> None:
    video = await _decode(decoder, tmp_path, Clip(duration_s=4.0), 4)
    np.testing.assert_allclose(video.frame_times_s, [0.5, 1.5, 2.5, 3.5], atol=0.2)


async def test_frames_show_what_was_rendered_at_their_times(decoder: Decoder, tmp_path: Path) -> None:
    clip = Clip(seed=5, width=64, height=64, bit_rate=4_000_000)
    video = await _decode(decoder, tmp_path, clip)
    rendered = [np.asarray(picture).transpose(2, 0, 1) for picture in pictures(clip)]
    for time_s, frame in zip(video.frame_times_s, video.frames, strict=True):
        distances = [np.abs(one.astype(int) - frame).mean() for one in rendered]
        assert distances[round(time_s * 25)] == min(distances) < 8


async def test_every_scene_is_represented(decoder: Decoder, jumping: Decoder, tmp_path: Path) -> None:
    scenes = (Scene(RED, "disc", 6.0), Scene(GREEN, "squares", 0.6), Scene(BLUE, "disc", 1.4))
    for one in (decoder, jumping):
        video = await _decode(one, tmp_path, Clip(scenes=scenes, key_interval=10), 4)
        assert [_main_channel(frame) for frame in video.frames] == [0, 0, 1, 2]


async def test_black_scenes_are_left_out_of_frames_and_poster(decoder: Decoder, tmp_path: Path) -> None:
    black = Scene(0.0, "disc", 1.5, brightness=0.0)
    video = await _decode(decoder, tmp_path, Clip(scenes=(black, Scene(GREEN, "disc", 1.0), black)))
    assert {_main_channel(frame) for frame in video.frames} == {1}
    assert all(1.5 <= time_s <= 2.5 for time_s in video.frame_times_s)
    assert np.asarray(Image.open(io.BytesIO(video.poster_jpeg))).mean() > 40


async def test_a_video_of_black_alone_still_has_frames(decoder: Decoder, tmp_path: Path) -> None:
    video = await _decode(decoder, tmp_path, Clip(scenes=(Scene(0.0, "disc", 2.0, brightness=0.0),)))
    assert len(video.frames) == 8


@pytest.mark.parametrize(("rotation", "corner"), [(0, 0), (90, 2), (180, 3), (270, 1)])
async def test_pictures_are_turned_upright(
    decoder: Decoder, tmp_path: Path, rotation: int, corner: int
) -> None:
    """The upper left quarter is white; turned counterclockwise it goes to the lower left first."""
    path = tmp_path / "turned.mp4"
    picture = Image.new("RGB", (96, 64), "navy")
    picture.paste("white", (0, 0, 48, 32))
    with av.open(path, "w") as output:
        stream = output.add_stream("mpeg4", 25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode(None))
    video = await decoder.decode_video(path, FrameShape(64, "squash"), 1)
    assert (video.width, video.height) == ((96, 64) if rotation in (0, 180) else (64, 96))
    assert Image.open(io.BytesIO(video.poster_jpeg)).size == (video.width, video.height)
    quarters = video.frames[0].mean(axis=0).reshape(2, 32, 2, 32).mean(axis=(1, 3)).ravel()
    assert int(np.argmax(quarters)) == corner


async def test_pixels_that_are_not_square_are_made_so(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "anamorphic.mp4"
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for picture in pictures(Clip(width=72, height=64)):
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode(None))
    video = await decoder.decode_video(path, SHAPE, 2)
    assert (video.width, video.height) == (96, 64)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("h264", "yuv444p10le"), ("hevc", "yuv420p10le"), ("h264", "yuv422p")]
)
async def test_odd_pixel_formats_have_the_same_colours(
    decoder: Decoder, tmp_path: Path, codec: Any, pixels: str
) -> None:
    scenes = (Scene(RED, "disc", 1.0), Scene(GREEN, "disc", 1.0))
    clip = Clip(scenes=scenes, codec=codec, container="mkv", bit_rate=2_000_000)
    plain = await _decode(decoder, tmp_path, clip)
    other = await _decode(decoder, tmp_path, Clip(**{**_fields(clip), "pixel_format": pixels}))
    assert plain.frame_times_s == other.frame_times_s
    assert np.abs(plain.frames.astype(int) - other.frames).mean() < 6


def _fields(clip: Clip) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in Clip.__slots__}


async def test_a_variable_frame_rate_is_measured_by_its_times(decoder: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "variable.mkv"
    times_ms = [*range(0, 1000, 40), *range(1000, 5000, 500)]
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        source = pictures(Clip(width=64, height=48, duration_s=len(times_ms) / 25))
        for time_ms, picture in zip(times_ms, source, strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    video = await decoder.decode_video(path, SHAPE, 5)
    assert video.duration_s == pytest.approx(4.54, abs=0.6)
    assert video.frame_rate == pytest.approx((len(times_ms) - 1) / 4.5, rel=0.01)
    assert video.frame_times_s[-1] > 3.5


async def test_a_video_of_fewer_frames_than_wanted_gives_each_once(decoder: Decoder, tmp_path: Path) -> None:
    for count in (1, 2, 5):
        video = await _decode(decoder, tmp_path, Clip(duration_s=count / 25))
        assert len(video.frames) == count
        np.testing.assert_allclose(video.frame_times_s, np.arange(count) / 25, atol=1e-3)


async def test_without_a_shape_there_is_a_poster_and_no_frame(decoder: Decoder, tmp_path: Path) -> None:
    clip = Clip(width=1280, height=720, duration_s=0.5)
    video = await decoder.decode_video(write_clip(clip, tmp_path), None, 8)
    assert (len(video.frames), video.frame_times_s) == (0, ())
    poster = Image.open(io.BytesIO(video.poster_jpeg))
    assert (poster.format, poster.mode, poster.size) == ("JPEG", "RGB", (720, 405))


async def test_jumping_finds_the_frames_that_decoding_everything_finds(
    decoder: Decoder, jumping: Decoder, tmp_path: Path
) -> None:
    """With keyframes far apart there is nothing to snap to, and pictures of every type on the way."""
    path = tmp_path / "long.mp4"
    _write_with_b_frames(path, Clip(seed=11, duration_s=8.0, width=96, height=64), key_interval=1000)
    whole = await decoder.decode_video(path, SHAPE, 8)
    some = await jumping.decode_video(path, SHAPE, 8)
    assert whole.frame_times_s == some.frame_times_s
    np.testing.assert_array_equal(whole.frames, some.frames)


async def test_jumping_takes_keyframes_where_there_are_some(jumping: Decoder, tmp_path: Path) -> None:
    path = tmp_path / "keys.mp4"
    _write_with_b_frames(path, Clip(seed=12, duration_s=8.0, width=96, height=64), key_interval=5)
    video = await jumping.decode_video(path, SHAPE, 8)
    numbers = np.array(video.frame_times_s) * 25
    np.testing.assert_allclose(numbers % 5, 0, atol=0.01)


def _write_with_b_frames(path: Path, clip: Clip, *, key_interval: int) -> None:
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.gop_size = key_interval
        stream.codec_context.options = {"x264-params": "scenecut=0:open-gop=0:bframes=3", "preset": "medium"}
        for picture in pictures(clip):
            output.mux(stream.encode(av.VideoFrame.from_image(picture)))
        output.mux(stream.encode(None))


async def test_the_same_file_gives_the_same_result(decoder: Decoder, tmp_path: Path) -> None:
    clip = Clip(seed=9, audio=True)
    first, second = await _decode(decoder, tmp_path, clip), await _decode(decoder, tmp_path, clip)
    np.testing.assert_array_equal(first.frames, second.frames)
    assert first.poster_jpeg == second.poster_jpeg


def test_a_clip_renders_to_the_same_bytes_again() -> None:
    for clip in (Clip(audio=True), Clip(codec="vp8", container="webm", audio=True)):
        assert clip_bytes(clip) == clip_bytes(clip)


async def test_the_real_clips_are_all_taken(decoder: Decoder) -> None:
    folder = os.environ.get("KEEK_TEST_DATA")
    if not folder:
        pytest.skip("KEEK_TEST_DATA names no folder with the real clips")
    paths = sorted((Path(folder) / "videos").glob("*.*"))
    assert len(paths) == 11
    for path in paths:
        video = await decoder.decode_video(path, FrameShape(224), 8)
        assert video.frames.shape == (8, 3, 224, 224)
        with av.open(path) as opened:
            declared_s = (opened.duration or 0) / av.time_base
            matrix_free = opened.streams.video[0].codec_context
            assert video.height == matrix_free.height
        assert video.duration_s == pytest.approx(declared_s, abs=0.5)
        assert video.container == path.suffix[1:]
        assert np.asarray(Image.open(io.BytesIO(video.poster_jpeg))).std() > 10


def _copy(content: bytes, path: Path, *, skip: int = 0, later_s: int = 0) -> Path:
    """Another file with the same packets, without the first few, or at later times."""
    with av.open(io.BytesIO(content)) as source, av.open(path, "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= skip:
                assert packet.pts is not None
                assert packet.dts is not None
                packet.pts += int(later_s / packet.time_base)
                packet.dts += int(later_s / packet.time_base)
                packet.stream = stream
                output.mux(packet)
    return path


@pytest.mark.parametrize("container", ["ts", "mkv"])
@pytest.mark.parametrize("codec", ["hevc", "h264"])
async def test_what_begins_between_keyframes_is_taken_from_the_first_one_on(
    decoder: Decoder, jumping: Decoder, tmp_path: Path, codec: Any, container: str
) -> None:
    clip = Clip(codec=codec, container="mkv", duration_s=4.0, key_interval=20)
    path = _copy(clip_bytes(clip), tmp_path / f"cut.{container}", skip=7)
    for one in (decoder, jumping):
        video = await one.decode_video(path, SHAPE, 8)
        assert len(video.frames) == 8
        # The keyframe is the twentieth; thirteen pictures before it cannot be seen.
        assert min(video.frame_times_s) >= 0.4
    whole = await decoder.decode_video(write_clip(clip, tmp_path), SHAPE, 64)
    for frame in video.frames:
        distances = np.abs(whole.frames.astype(int) - frame).mean(axis=(1, 2, 3))
        assert distances.min() < 8


@pytest.mark.parametrize("later_s", [5, 1000])
async def test_a_matroska_file_need_not_begin_at_zero(decoder: Decoder, tmp_path: Path, later_s: int) -> None:
    content = clip_bytes(Clip(codec="vp8", container="webm"))
    video = await decoder.decode_video(_copy(content, tmp_path / "later.webm", later_s=later_s), SHAPE, 8)
    assert video.duration_s == pytest.approx(2.0, abs=0.05)
    assert 0.0 <= min(video.frame_times_s) < max(video.frame_times_s) < 2.0


async def test_what_a_camera_appends_does_not_matter(decoder: Decoder, tmp_path: Path) -> None:
    path = write_clip(Clip(), tmp_path)
    with path.open("ab") as file:
        file.write(b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data1234567890123SEFH")
    assert len((await decoder.decode_video(path, SHAPE, 8)).frames) == 8


# -- images ---------------------------------------------------------------------------------------


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _picture() -> Image.Image:
    return next(iter(pictures(Clip(seed=4))))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
async def test_an_image_becomes_the_square_that_clip_takes(decoder: Decoder, kind: str, options: Any) -> None:
    square = await decoder.decode_image(_encode(_picture(), kind, **options), FrameShape(240))
    left = (320 - 240) // 2
    expected = np.asarray(_picture().crop((left, 0, left + 240, 240))).transpose(2, 0, 1)
    np.testing.assert_array_equal(square, expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
async def test_images_of_every_mode_are_taken(decoder: Decoder, mode: str) -> None:
    content = _encode(_picture().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    square = await decoder.decode_image(content, SHAPE)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode
        assert square.tobytes() == to_square(image.convert("RGB"), SHAPE)


async def test_an_image_is_turned_as_its_camera_was(decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image = Image.new("RGB", (64, 64), "navy")
    image.paste("white", (0, 0, 64, 32))
    square = await decoder.decode_image(_encode(image, "JPEG", exif=exif), SHAPE)
    assert square[:, :, 40:].mean() > 200 > square[:, :, :24].mean()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", MediaProblem.NOT_AN_IMAGE),
        (b"no image", MediaProblem.NOT_AN_IMAGE),
        (_encode(_picture(), "GIF"), MediaProblem.NOT_AN_IMAGE),
        (_encode(_picture(), "JPEG")[:2000], MediaProblem.TRUNCATED),
        (_encode(_picture(), "PNG")[:500], MediaProblem.TRUNCATED),
        (_encode(Image.new("1", (20_000, 20_000)), "PNG"), MediaProblem.TOO_LARGE),
        (bytes(17 * 2**20), MediaProblem.TOO_LARGE),
    ],
    ids=["empty", "text", "gif", "cut-jpeg", "cut-png", "20k", "17-mib"],
)
async def test_a_bad_image_is_refused_with_the_reason(
    decoder: Decoder, content: bytes, reason: MediaProblem
) -> None:
    with pytest.raises(BadMediaError) as refused:
        await decoder.decode_image(content, SHAPE, field="image")
    assert refused.value.reason is reason
    assert refused.value.violations[0].field == "image"
