"""Keek's client: feeds of short videos, and the feedback that changes them.

`keek.Client` blocks, `keek.aio.Client` is for asyncio; both return the messages of
`keek.v1`, whose fields are documented in `proto/keek/v1`.
"""

from keek import aio
from keek.channel import VERSION, RetryPolicy, Timeouts
from keek.client import Client
from keek.connection import ClientState
from keek.errors import (
    CallCancelledError,
    CallError,
    ClientStateError,
    DeadlineExceededError,
    ErrorDetails,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    KeekError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from keek.messages import Recorded, RecordOptions, interaction
from keek.v1.feed_service_pb2 import FeedItem, FeedSource
from keek.v1.interaction_service_pb2 import Interaction, InteractionKind
from keek.v1.trending_service_pb2 import TrendingVideo
from keek.v1.video_service_pb2 import Video

__version__ = VERSION

__all__ = [
    "CallCancelledError",
    "CallError",
    "Client",
    "ClientState",
    "ClientStateError",
    "DeadlineExceededError",
    "ErrorDetails",
    "FeedItem",
    "FeedSource",
    "FieldViolation",
    "Interaction",
    "InteractionKind",
    "InternalError",
    "InvalidArgumentError",
    "KeekError",
    "NotFoundError",
    "PermissionDeniedError",
    "RecordOptions",
    "Recorded",
    "ResourceExhaustedError",
    "RetryPolicy",
    "Timeouts",
    "TrendingVideo",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Video",
    "__version__",
    "aio",
    "interaction",
]
