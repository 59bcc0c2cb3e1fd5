"""The blocking connection: calls on a `grpc.Channel`, errors in Keek's terms."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from keek import wire
from keek.channel import Metadata
from keek.connection import BaseConnection, PageRequest, PageResponse, turn_page
from keek.errors import translated
from keek.v1.experiment_service_pb2_grpc import ExperimentServiceStub
from keek.v1.feed_service_pb2_grpc import FeedServiceStub
from keek.v1.interaction_service_pb2_grpc import InteractionServiceStub
from keek.v1.release_service_pb2_grpc import ReleaseServiceStub
from keek.v1.search_service_pb2_grpc import SearchServiceStub
from keek.v1.trending_service_pb2_grpc import TrendingServiceStub
from keek.v1.video_service_pb2_grpc import VideoServiceStub

Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)
Page = TypeVar("Page", bound=PageResponse)
Query = TypeVar("Query", bound=PageRequest)
Request = TypeVar("Request")
Response = TypeVar("Response")


class Method(Protocol[Request_contra, Response_co]):
    """A stub's method with one response."""

    def __call__(
        self, request: Request_contra, /, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Response_co:
        """Blocks until the response is here or the deadline has passed."""


class Responses(Protocol[Response_co]):
    """The responses of a call that streams them."""

    def __iter__(self) -> Iterator[Response_co]: ...
    def cancel(self) -> bool:
        """Ends the call; nothing happens when it has ended."""


class StreamMethod(Protocol[Request_contra, Response_co]):
    """A stub's method that streams its responses."""

    def __call__(self, request: Request_contra, /, timeout: float | None = None) -> Responses[Response_co]:
        """Starts the call."""


@dataclass(frozen=True, slots=True)
class Stubs:
    """The stubs of all services on one channel."""

    feed: FeedServiceStub
    interactions: InteractionServiceStub
    videos: VideoServiceStub
    search: SearchServiceStub
    trending: TrendingServiceStub
    releases: ReleaseServiceStub
    experiments: ExperimentServiceStub
    health_check: Method[Any, Any]

    @classmethod
    def on(cls, channel: grpc.Channel) -> Self:
        """The stubs on `channel`."""
        return cls(
            FeedServiceStub(channel),
            InteractionServiceStub(channel),
            VideoServiceStub(channel),
            SearchServiceStub(channel),
            TrendingServiceStub(channel),
            ReleaseServiceStub(channel),
            ExperimentServiceStub(channel),
            channel.unary_unary(
                wire.HEALTH_CHECK,
                request_serializer=wire.HealthCheckRequest.SerializeToString,
                response_deserializer=wire.HealthCheckResponse.FromString,
            ),
        )


class BlockingConnection(BaseConnection[grpc.Channel, Stubs]):
    """Threads may share it."""

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel and cancels the calls that run on it; again is harmless."""
        if (channel := self._shut()) is not None:
            channel.close()

    def _connect(self) -> tuple[grpc.Channel, Stubs]:
        if self._credentials is None:
            channel = grpc.insecure_channel(self._target, self._options)
        else:
            channel = grpc.secure_channel(self._target, self._credentials, self._options)
        return channel, Stubs.on(channel)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except ValueError:
            # What gRPC raises on a channel that was closed meanwhile.
            self._require_usable()
            raise

    def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        default_s: float,
        metadata: Metadata | None = None,
    ) -> Response:
        with self._guard():
            return method(request, timeout=default_s if timeout_s is None else timeout_s, metadata=metadata)

    def _pages(
        self, method: Method[Query, Page], request: Query, timeout_s: float | None, default_s: float
    ) -> Iterator[Page]:
        while True:
            page = self._call(method, request, timeout_s, default_s)
            yield page
            if not turn_page(request, page):
                return

    def _stream(
        self,
        method: StreamMethod[Request, Response],
        request: Request,
        timeout_s: float | None,
        default_s: float,
    ) -> Generator[Response, None, None]:
        with self._guard():
            call = method(request, timeout=default_s if timeout_s is None else timeout_s)
            try:
                yield from call
            finally:
                # A reader that stops early leaves nothing running on the server.
                call.cancel()
