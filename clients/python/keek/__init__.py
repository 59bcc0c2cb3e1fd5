"""Keek's client: feeds of short videos, and the feedback that changes them.

`keek.Client` blocks, `keek.aio.Client` is for asyncio; both return the messages of
`keek.v1`, whose fields are documented in `proto/keek/v1`.
"""

from keek import aio
from keek.changes import ChangeOptions
from keek.channel import VERSION, RetryPolicy, Timeouts
from keek.client import Client
from keek.connection import ClientState
from keek.errors import (
    AlreadyExistsError,
    CallCancelledError,
    CallError,
    ClientStateError,
    DeadlineExceededError,
    ErrorDetails,
    FailedPreconditionError,
    FieldViolation,
    FileChangedError,
    InternalError,
    InvalidArgumentError,
    KeekError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from keek.messages import Recorded, RecordOptions, WatchOptions, interaction
from keek.queries import SearchOptions
from keek.v1.experiment_service_pb2 import (
    Adaptation,
    Arm,
    ArmOverride,
    Audience,
    Experiment,
    ExperimentDefinition,
    ExperimentState,
    FeedParameters,
    Guardrails,
)
from keek.v1.feed_service_pb2 import FeedItem, FeedSource
from keek.v1.interaction_service_pb2 import Interaction, InteractionKind
from keek.v1.release_service_pb2 import Release, ReleaseState, Rollout, TrialKind
from keek.v1.search_service_pb2 import FoundVideo
from keek.v1.trending_service_pb2 import TrendingVideo
from keek.v1.video_filter_pb2 import VideoFilter
from keek.v1.video_service_pb2 import Video, VideoState

__version__ = VERSION

__all__ = [
    "Adaptation",
    "AlreadyExistsError",
    "Arm",
    "ArmOverride",
    "Audience",
    "CallCancelledError",
    "CallError",
    "ChangeOptions",
    "Client",
    "ClientState",
    "ClientStateError",
    "DeadlineExceededError",
    "ErrorDetails",
    "Experiment",
    "ExperimentDefinition",
    "ExperimentState",
    "FailedPreconditionError",
    "FeedItem",
    "FeedParameters",
    "FeedSource",
    "FieldViolation",
    "FileChangedError",
    "FoundVideo",
    "Guardrails",
    "Interaction",
    "InteractionKind",
    "InternalError",
    "InvalidArgumentError",
    "KeekError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "RecordOptions",
    "Recorded",
    "Release",
    "ReleaseState",
    "ResourceExhaustedError",
    "RetryPolicy",
    "Rollout",
    "SearchOptions",
    "Timeouts",
    "TrendingVideo",
    "TrialKind",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Video",
    "VideoFilter",
    "VideoState",
    "WatchOptions",
    "__version__",
    "aio",
    "interaction",
]
