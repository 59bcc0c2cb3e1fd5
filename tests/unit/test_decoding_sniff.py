"""What a file is, told from its first bytes, and what its structure claims."""

import io

import pytest
from benchmarks.clips import Clip, Container, clip_bytes

from keek_server.errors import BadMediaError, MediaProblem
from keek_server.videos.decoding.avi import avi_claims
from keek_server.videos.decoding.claims import Claims, Reader
from keek_server.videos.decoding.matroska import matroska_claims
from keek_server.videos.decoding.mp4 import mp4_claims
from keek_server.videos.decoding.sniff import HEAD_BYTES, sniff_video
from keek_server.videos.decoding.transport_stream import transport_stream_claims

_READ = {
    "mp4": mp4_claims,
    "mov": mp4_claims,
    "mkv": matroska_claims,
    "webm": matroska_claims,
    "avi": avi_claims,
    "ts": transport_stream_claims,
}


def _clip(container: Container) -> bytes:
    codec = {"webm": "vp8", "avi": "mpeg4"}.get(container, "h264")
    return clip_bytes(Clip(duration_s=1.0, container=container, codec=codec))


def _claims(container: str, content: bytes) -> Claims:
    return _READ[container](Reader(io.BytesIO(content), len(content)))


@pytest.mark.parametrize("container", ["mp4", "mov", "webm", "mkv", "avi", "ts"])
def test_every_container_is_known_by_its_first_bytes(container: Container) -> None:
    assert sniff_video(_clip(container)[:HEAD_BYTES]).extension == container


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", MediaProblem.NOT_A_VIDEO),
        (bytes(500), MediaProblem.NOT_A_VIDEO),
        (b"hello", MediaProblem.NOT_A_VIDEO),
        (b"\xef\xbb\xbf\n#EXTM3U\nhttp://example.org/a.ts", MediaProblem.NOT_A_VIDEO),
        (b"\0\0\0\x18ftypheic\0\0\0\0", MediaProblem.NOT_A_VIDEO),
        (b"RIFF\0\0\0\0WEBPVP8 ", MediaProblem.NOT_A_VIDEO),
        (b"RIFF\0\0\0\0WAVEfmt ", MediaProblem.NO_VIDEO_STREAM),
        (b"ID3\x04\0\0\0", MediaProblem.NO_VIDEO_STREAM),
        (b"FLV\x01\x05", MediaProblem.UNSUPPORTED_FORMAT),
        (b"OggS\0\x02", MediaProblem.UNSUPPORTED_FORMAT),
    ],
)
def test_what_is_no_video_is_told_from_what_is_not_taken(head: bytes, reason: MediaProblem) -> None:
    with pytest.raises(BadMediaError) as refused:
        sniff_video(head, "chunk")
    assert refused.value.reason is reason
    assert refused.value.violations[0].field == "chunk"


@pytest.mark.parametrize("container", ["mp4", "mov", "webm", "mkv", "avi"])
def test_a_whole_file_claims_its_size_and_its_end(container: Container) -> None:
    content = _clip(container)
    claims = _claims(container, content)
    assert (claims.width, claims.height) == (320, 240)
    assert not claims.ends_early
    assert claims.duration_s == pytest.approx(0.0 if container in ("webm", "mkv") else 1.0)


@pytest.mark.parametrize("container", ["mp4", "mov", "webm", "mkv", "avi", "ts"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_cut_file_claims_more_than_there_is(container: Container, share: float) -> None:
    content = _clip(container)
    # An odd length: what ends between two packets of a transport stream is only shorter.
    assert _claims(container, content[: int(len(content) * share) | 1]).ends_early


def test_headers_without_end_are_refused() -> None:
    content = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08free" * 300_000
    with pytest.raises(BadMediaError) as refused:
        _claims("mp4", content)
    assert refused.value.reason is MediaProblem.CORRUPT


@pytest.mark.parametrize(
    "trailer",
    [
        b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data",
        b"user data: recorded by a camera\n" * 3,
        b"\0\0\1\0gpmd",
        bytes(1000),
    ],
    ids=["tagged", "text", "named", "zeros"],
)
def test_what_a_camera_appends_is_no_missing_end(trailer: bytes) -> None:
    assert not _claims("mp4", _clip("mp4") + trailer).ends_early
