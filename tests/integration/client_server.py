"""A real gRPC server for the tests of the client: small services in memory, with fault knobs."""

# ruff: noqa: N802 - the names are gRPC methods

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from client_catalogue import BAD_FILE, PART_BYTES, Search, Videos
from client_experiments import Experiments
from client_faults import Fault, Faults, bad_request, error_info, page_of, retry_info, status_metadata
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from keek.v1 import (
    experiment_service_pb2_grpc,
    feed_service_pb2,
    feed_service_pb2_grpc,
    interaction_service_pb2,
    interaction_service_pb2_grpc,
    search_service_pb2_grpc,
    trending_service_pb2,
    trending_service_pb2_grpc,
    video_service_pb2_grpc,
)

__all__ = [
    "BAD_FILE",
    "CORPUS",
    "PART_BYTES",
    "Fault",
    "Server",
    "bad_request",
    "error_info",
    "retry_info",
    "serve",
]

CORPUS = [f"v{number}" for number in range(25)]
"""The videos of every feed, in order."""


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
        names, token = page_of(CORPUS, request.page_size, request.page_token)
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
                names, token = page_of(CORPUS, request.page_size, token)
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
class Trending(trending_service_pb2_grpc.TrendingServiceServicer):
    faults: Faults

    async def ListTrending(self, request: Any, context: Any) -> trending_service_pb2.ListTrendingResponse:
        await self.faults.strike("ListTrending", request, context)
        names, token = page_of(CORPUS, request.page_size, request.page_token)
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
    search: Search
    experiments: Experiments
    health: health_aio.HealthServicer

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def serve(
    credentials: grpc.ServerCredentials | None = None, *, port: int = 0, before: Server | None = None
) -> AsyncIterator[Server]:
    """A server on the loopback interface, on a free port or this one, with TLS when it has credentials.

    It has the videos of the server `before`, as after a restart.
    """
    faults = before.faults if before else Faults()
    interactions, health = Interactions(faults), health_aio.HealthServicer()
    videos = before.videos if before else Videos(faults)
    search, experiments = Search(faults, CORPUS), Experiments(faults)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 9 << 20)])
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(Feeds(faults), server)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(interactions, server)
    video_service_pb2_grpc.add_VideoServiceServicer_to_server(videos, server)
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(search, server)
    trending_service_pb2_grpc.add_TrendingServiceServicer_to_server(Trending(faults), server)
    experiment_service_pb2_grpc.add_ExperimentServiceServicer_to_server(experiments, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield Server(port, faults, interactions, videos, search, experiments, health)
    finally:
        await server.stop(grace=None)
