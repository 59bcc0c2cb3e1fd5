"""The asyncio connection: calls on a `grpc.aio.Channel`, errors in Keek's terms."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

import grpc

from keek import wire
from keek.channel import Metadata
from keek.connection import BaseConnection, PageRequest, PageResponse, turn_page
from keek.errors import CallCancelledError, ClientStateError, DeadlineExceededError, translated
from keek.v1.experiment_service_pb2_grpc import ExperimentServiceStub
from keek.v1.feed_service_pb2_grpc import FeedServiceStub
from keek.v1.interaction_service_pb2_grpc import InteractionServiceStub
from keek.v1.release_service_pb2_grpc import ReleaseServiceStub
from keek.v1.search_service_pb2_grpc import SearchServiceStub
from keek.v1.trending_service_pb2_grpc import TrendingServiceStub
from keek.v1.video_service_pb2_grpc import VideoServiceStub

if TYPE_CHECKING:
    # These exist for type checkers alone: at run time the stubs of both stacks are one.
    from keek.v1.experiment_service_pb2_grpc import ExperimentServiceAsyncStub
    from keek.v1.feed_service_pb2_grpc import FeedServiceAsyncStub
    from keek.v1.interaction_service_pb2_grpc import InteractionServiceAsyncStub
    from keek.v1.release_service_pb2_grpc import ReleaseServiceAsyncStub
    from keek.v1.search_service_pb2_grpc import SearchServiceAsyncStub
    from keek.v1.trending_service_pb2_grpc import TrendingServiceAsyncStub
    from keek.v1.video_service_pb2_grpc import VideoServiceAsyncStub

Request_contra = TypeVar("Request_contra", contravariant=True)
Response_co = TypeVar("Response_co", covariant=True)
Page = TypeVar("Page", bound=PageResponse)
Query = TypeVar("Query", bound=PageRequest)
Request = TypeVar("Request")
Response = TypeVar("Response")


class Method(Protocol[Request_contra, Response_co]):
    """A stub's method with one response."""

    def __call__(
        self, request: Request_contra, /, *, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Awaitable[Response_co]:
        """Starts the call."""


class Responses(Protocol[Response_co]):
    """The responses of a call that streams them."""

    def __aiter__(self) -> AsyncIterator[Response_co]: ...
    def cancel(self) -> bool:
        """Ends the call; nothing happens when it has ended."""


class StreamMethod(Protocol[Request_contra, Response_co]):
    """A stub's method that streams its responses."""

    def __call__(self, request: Request_contra, /, *, timeout: float | None = None) -> Responses[Response_co]:
        """Starts the call."""


@dataclass(frozen=True, slots=True)
class Stubs:
    """The stubs of all services on one channel."""

    feed: "FeedServiceAsyncStub"
    interactions: "InteractionServiceAsyncStub"
    videos: "VideoServiceAsyncStub"
    search: "SearchServiceAsyncStub"
    trending: "TrendingServiceAsyncStub"
    releases: "ReleaseServiceAsyncStub"
    experiments: "ExperimentServiceAsyncStub"
    health_check: Method[Any, Any]

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> Self:
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


class AsyncConnection(BaseConnection[grpc.aio.Channel, Stubs]):
    """Belongs to the event loop that it was opened on."""

    _loop: asyncio.AbstractEventLoop
    _streams: set[Responses[Any]]
    """The calls that stream their responses at present."""

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, *, grace_s: float | None = None) -> None:
        """Closes the channel; again is harmless.

        Calls that run on it may end within `grace_s` seconds, then they are cancelled; streams are
        cancelled at once.
        """
        if (channel := self._shut()) is not None:
            # gRPC finds the calls to cancel among the tasks, where streams being read have none.
            for stream in self._streams:
                stream.cancel()
            await channel.close(grace_s)

    def _connect(self) -> tuple[grpc.aio.Channel, Stubs]:
        self._loop = asyncio.get_running_loop()
        self._streams = set()
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(self._target, self._options)
        else:
            channel = grpc.aio.secure_channel(self._target, self._credentials, self._options)
        return channel, Stubs.on(channel)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        self._require_usable()
        if asyncio.get_running_loop() is not self._loop:
            raise ClientStateError("the client was opened on another event loop; make one a loop")
        try:
            with translated():
                yield
        except asyncio.CancelledError:
            # gRPC cancels the calls of a channel that is closed. The task that waits for one was
            # not cancelled itself, so it must not look as if it were.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise CallCancelledError(
                    grpc.StatusCode.CANCELLED, "the client was closed during the call"
                ) from None
            raise

    async def _call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout_s: float | None,
        default_s: float,
        metadata: Metadata | None = None,
    ) -> Response:
        with self._guard():
            response = await method(
                request, timeout=default_s if timeout_s is None else timeout_s, metadata=metadata
            )
        # A deadline that passes while the answer arrives: gRPC then gives no error, and no message
        # (https://github.com/grpc/grpc/issues/23559).
        if cast("Response | None", response) is None:
            raise DeadlineExceededError(grpc.StatusCode.DEADLINE_EXCEEDED, "the answer came too late")
        return response

    async def _pages(
        self, method: Method[Query, Page], request: Query, timeout_s: float | None, default_s: float
    ) -> AsyncGenerator[Page, None]:
        while True:
            page = await self._call(method, request, timeout_s, default_s)
            yield page
            if not turn_page(request, page):
                return

    async def _stream(
        self,
        method: StreamMethod[Request, Response],
        request: Request,
        timeout_s: float | None,
        default_s: float,
    ) -> AsyncGenerator[Response, None]:
        with self._guard():
            call = method(request, timeout=default_s if timeout_s is None else timeout_s)
            self._streams.add(call)
            try:
                async for response in call:
                    yield response
            finally:
                self._streams.discard(call)
                # A reader that stops early leaves nothing running on the server.
                call.cancel()
