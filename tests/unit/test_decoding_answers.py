"""Answers that cannot be."""

import json
import math
from typing import Any

import pytest

from keek_server.videos.decoding.answers import DecodedVideo, video_of
from keek_server.videos.decoding.types import Job, Limits

_LIMITS = Limits(600.0, 4096, 240.0, 72_000, 10**9, ("h264",), cpu_s=20, memory_mb=1024)
_POSTER = b"\xff\xd8\xff poster"


def _video(**changes: Any) -> DecodedVideo:
    head = {
        "frame_times_s": [],
        "poster_bytes": len(_POSTER),
        "duration_s": 2.0,
        "width": 320,
        "height": 240,
        "frame_rate": 25.0,
        "codec": "h264",
        "container": "mp4",
    }
    # As it comes: JSON as Python reads it has numbers that JSON has not.
    read = json.loads(json.dumps(head | changes))
    return video_of(read, bytearray(_POSTER), Job("video", 1000, None, 0, _LIMITS))


def test_a_proper_answer_is_taken() -> None:
    assert _video().frame_rate == 25.0
    assert _video(frame_rate=240.0).frame_rate == 240.0


@pytest.mark.parametrize(
    "changes",
    [
        {"frame_rate": math.inf},
        {"frame_rate": math.nan},
        {"frame_rate": -1.0},
        {"duration_s": math.inf},
        {"duration_s": "2"},
        {"width": 10**6},
        {"codec": "mjpeg"},
        {"poster_bytes": 1},
    ],
    ids=str,
)
def test_an_answer_that_cannot_be_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _video(**changes)
