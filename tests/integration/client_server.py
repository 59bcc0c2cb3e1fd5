"""A real gRPC server for the tests of the client: small services in memory, with fault knobs."""

# ruff: noqa: N802 - the names are gRPC methods

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from keek.v1 import (
    feed_service_pb2,
    feed_service_pb2_grpc,
    interaction_service_pb2,
    interaction_service_pb2_grpc,
    trending_service_pb2,
    trending_service_pb2_grpc,
    video_service_pb2,
    video_service_pb2_grpc,
)

CORPUS = [f"v{number}" for number in range(25)]
"""The videos of every feed, in order."""


@dataclass(slots=True)
class Fault:
    """What happens to one attempt instead of its answer."""

    code: grpc.StatusCode | None = None
    message: str = "injected"
    details: Sequence[Message] = ()
    delay_s: float = 0.0
    """How long the attempt takes first."""


@dataclass(slots=True)
class Faults:
    """Knobs, and what arrived at the server."""

    queued: defaultdict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    attempts: Counter[str] = field(default_factory=Counter)
    requests: defaultdict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    cancelled: list[str] = field(default_factory=list)
    fail_stream_after: int | None = None
    """Pages after which a stream fails with INTERNAL."""
    pause_s: float = 0.0
    """Between the pages of a stream."""

    def add(self, method: str, *faults: Fault) -> None:
        """The next attempts of `method` go like this."""
        self.queued[method].extend(faults)

    async def strike(
        self, method: str, request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Counts an attempt, and lets happen to it what is queued."""
        self.attempts[method] += 1
        self.requests[method].append(request)
        if not self.queued[method]:
            return
        fault = self.queued[method].popleft()
        try:
            await asyncio.sleep(fault.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(method)
            raise
        if fault.code is not None:
            await context.abort(fault.code, fault.message, status_metadata(fault))


def status_metadata(fault: Fault) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata with a google.rpc.Status, as a server sends it."""
    if not fault.details or fault.code is None:
        return ()
    status = status_pb2.Status(code=fault.code.value[0], message=fault.message)
    for detail in fault.details:
        status.details.add().Pack(detail)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def error_info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="keek", metadata=metadata)


def bad_request(**violations: str) -> error_details_pb2.BadRequest:
    """Violations by field; `__` stands for a dot."""
    fields = [
        error_details_pb2.BadRequest.FieldViolation(field=name.replace("__", "."), description=text)
        for name, text in violations.items()
    ]
    return error_details_pb2.BadRequest(field_violations=fields)


def retry_info(delay_s: float) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(round(delay_s * 1000))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _page(names: Sequence[str], size: int, token: str) -> tuple[Sequence[str], str]:
    """A page of `names`, and the token of the next one."""
    start = int(token or 0)
    end = start + (size or 10)
    return names[start:end], str(end) if end < len(names) else ""


def _items(names: Iterable[str]) -> list[feed_service_pb2.FeedItem]:
    source = feed_service_pb2.FeedSource.FEED_SOURCE_PERSONALISED
    return [
        feed_service_pb2.FeedItem(video_id=name, source=source, score=0.5, release_id="r1") for name in names
    ]


def _trending(names: Iterable[str]) -> list[trending_service_pb2.TrendingVideo]:
    return [trending_service_pb2.TrendingVideo(video_id=name, score=2.5) for name in names]


@dataclass(slots=True)
class Feeds(feed_service_pb2_grpc.FeedServiceServicer):
    faults: Faults

    async def ListFeed(self, request: Any, context: Any) -> feed_service_pb2.ListFeedResponse:
        await self.faults.strike("ListFeed", request, context)
        names, token = _page(CORPUS, request.page_size, request.page_token)
        return feed_service_pb2.ListFeedResponse(
            items=_items(names),
            next_page_token=token,
            release_id="r1",
            degradations=self._degradations(request),
        )

    def _degradations(self, request: Any) -> list[feed_service_pb2.Degradation]:
        if request.user_id != "degraded":
            return []
        sources = feed_service_pb2.FeedSource
        return [
            feed_service_pb2.Degradation(
                source=sources.FEED_SOURCE_PERSONALISED,
                reason="deadline of 80 ms exceeded",
                replaced_by=[sources.FEED_SOURCE_TRENDING],
            )
        ]

    async def StreamFeed(
        self, request: Any, context: Any
    ) -> AsyncIterator[feed_service_pb2.StreamFeedResponse]:
        await self.faults.strike("StreamFeed", request, context)
        token = request.page_token
        try:
            for number in range(request.page_count or 1):
                if number == self.faults.fail_stream_after:
                    fault = Fault(grpc.StatusCode.INTERNAL, "broken", [error_info("INTERNAL")])
                    await context.abort(grpc.StatusCode.INTERNAL, "broken", status_metadata(fault))
                names, token = _page(CORPUS, request.page_size, token)
                yield feed_service_pb2.StreamFeedResponse(items=_items(names), next_page_token=token)
                await asyncio.sleep(self.faults.pause_s)
                if not token:
                    return
        except asyncio.CancelledError:
            self.faults.cancelled.append("StreamFeed")
            raise

    async def ExplainFeed(self, request: Any, context: Any) -> feed_service_pb2.ExplainFeedResponse:
        await self.faults.strike("ExplainFeed", request, context)
        answer = feed_service_pb2.ExplainFeedResponse
        personalised = feed_service_pb2.FeedSource.FEED_SOURCE_PERSONALISED
        trace = answer.SourceTrace(source=personalised, candidate_count=25)
        trace.elapsed.FromMicroseconds(1500)
        return answer(
            items=_items(CORPUS[:2]),
            release_id="r1",
            sources=[trace],
            filters=[answer.FilterTrace(name="seen", kept_count=24, removed_count=1)],
            verdicts=[
                answer.Verdict(video_id=name, stage="seen", detail="you have already seen it")
                for name in request.video_ids
            ],
            slot_shares=[feed_service_pb2.SlotShare(source=personalised, quota_count=7, served_count=2)],
        )


@dataclass(slots=True)
class Interactions(interaction_service_pb2_grpc.InteractionServiceServicer):
    faults: Faults
    stored: dict[str, interaction_service_pb2.Interaction] = field(default_factory=dict)
    """By event_id."""

    def _store(self, interaction: interaction_service_pb2.Interaction) -> bool:
        created = interaction.event_id not in self.stored
        self.stored.setdefault(interaction.event_id, interaction)
        return created

    async def RecordInteraction(
        self, request: Any, context: Any
    ) -> interaction_service_pb2.RecordInteractionResponse:
        await self.faults.strike("RecordInteraction", request, context)
        if request.interaction.video_id not in CORPUS:
            fault = Fault(
                grpc.StatusCode.NOT_FOUND,
                f"no video {request.interaction.video_id!r}",
                [error_info("VIDEO_NOT_FOUND", video_id=request.interaction.video_id)],
            )
            await context.abort(fault.code, fault.message, status_metadata(fault))
        return interaction_service_pb2.RecordInteractionResponse(
            created=self._store(request.interaction), in_feed=request.wait_for_feed
        )

    async def RecordInteractions(
        self, request_iterator: Any, context: Any
    ) -> interaction_service_pb2.RecordInteractionsResponse:
        answer = interaction_service_pb2.RecordInteractionsResponse()
        async for request in request_iterator:
            await self.faults.strike("RecordInteractions", request, context)
            for interaction in request.interactions:
                created = self._store(interaction)
                answer.created_count += created
                answer.duplicate_count += not created
        return answer


@dataclass(slots=True)
class Videos(video_service_pb2_grpc.VideoServiceServicer):
    faults: Faults
    stored: dict[str, video_service_pb2.Video] = field(default_factory=dict)

    async def GetVideo(self, request: Any, context: Any) -> video_service_pb2.GetVideoResponse:
        await self.faults.strike("GetVideo", request, context)
        if request.video_id not in self.stored:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no video {request.video_id!r}")
        return video_service_pb2.GetVideoResponse(video=self.stored[request.video_id])

    async def ListVideos(self, request: Any, context: Any) -> video_service_pb2.ListVideosResponse:
        await self.faults.strike("ListVideos", request, context)
        own = [
            name for name, video in sorted(self.stored.items()) if request.owner_id in ("", video.owner_id)
        ]
        names, token = _page(own, request.page_size, request.page_token)
        return video_service_pb2.ListVideosResponse(
            videos=[self.stored[name] for name in names], next_page_token=token
        )

    async def ImportVideos(self, request: Any, context: Any) -> video_service_pb2.ImportVideosResponse:
        await self.faults.strike("ImportVideos", request, context)
        too_long = {
            f"videos[{place}].duration_s": "must be at most 86400"
            for place, video in enumerate(request.videos)
            if video.duration_s > 86400
        }
        if too_long:
            fault = Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad videos", [bad_request(**too_long)])
            await context.abort(fault.code, fault.message, status_metadata(fault))
        created = sum(video.video_id not in self.stored for video in request.videos)
        self.stored.update((video.video_id, video) for video in request.videos)
        return video_service_pb2.ImportVideosResponse(
            created_count=created, updated_count=len(request.videos) - created
        )


@dataclass(slots=True)
class Trending(trending_service_pb2_grpc.TrendingServiceServicer):
    faults: Faults

    async def ListTrending(self, request: Any, context: Any) -> trending_service_pb2.ListTrendingResponse:
        await self.faults.strike("ListTrending", request, context)
        names, token = _page(CORPUS, request.page_size, request.page_token)
        return trending_service_pb2.ListTrendingResponse(videos=_trending(names), next_page_token=token)

    async def WatchTrending(
        self, request: Any, context: Any
    ) -> AsyncIterator[trending_service_pb2.WatchTrendingResponse]:
        """Three lists, each without the first video of the one before; then nothing changes."""
        await self.faults.strike("WatchTrending", request, context)
        size = request.page_size or 10
        try:
            for start in range(3):
                names = CORPUS[start : start + size]
                yield trending_service_pb2.WatchTrendingResponse(
                    videos=_trending(names),
                    entered_video_ids=names[-1:] if start else names,
                    left_video_ids=CORPUS[start - 1 : start] if start else [],
                )
                await asyncio.sleep(self.faults.pause_s)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.faults.cancelled.append("WatchTrending")
            raise


@dataclass(slots=True)
class Server:
    """A running server."""

    port: int
    faults: Faults
    interactions: Interactions
    videos: Videos
    health: health_aio.HealthServicer

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Server]:
    """A server on a free port of the loopback interface, with TLS when it has credentials."""
    faults = Faults()
    interactions, videos, health = Interactions(faults), Videos(faults), health_aio.HealthServicer()
    server = grpc.aio.server()
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(Feeds(faults), server)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(interactions, server)
    video_service_pb2_grpc.add_VideoServiceServicer_to_server(videos, server)
    trending_service_pb2_grpc.add_TrendingServiceServicer_to_server(Trending(faults), server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = "127.0.0.1:0"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield Server(port, faults, interactions, videos, health)
    finally:
        await server.stop(grace=None)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)
