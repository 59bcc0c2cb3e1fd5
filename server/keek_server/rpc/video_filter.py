"""Conditions on videos, as requests state them."""

from keek.v1 import video_filter_pb2 as pb
from keek_server.clock import now_us
from keek_server.videos.filters import VideoFilter


def decode_filter(message: pb.VideoFilter) -> VideoFilter:
    """What a request asks of videos; one that is not set asks nothing."""
    return VideoFilter(
        tuple(message.tags),
        message.owner_id,
        message.min_duration_s,
        message.max_duration_s,
        now_us() - int(message.max_age_s * 1e6) if message.max_age_s else 0,
        tuple(message.languages),
        tuple(message.regions),
    )
