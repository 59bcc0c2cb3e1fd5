"""A server that is asked for more than it can do: who is refused, how, and who is not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from keek.v1 import (
    feed_service_pb2,
    feed_service_pb2_grpc,
    interaction_service_pb2,
    interaction_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from keek_server.rpc.door import Door
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.limits import GradientLimit
from keek_server.rpc.rules import RuleChecker
from keek_server.rpc.status import DETAILS_KEY

LIMIT = 8
FEED = feed_service_pb2.ListFeedRequest(user_id="u1")
SEARCH = search_service_pb2.ListSimilarVideosRequest(video_id="v1")
INTERACTION = interaction_service_pb2.RecordInteractionRequest(
    interaction=interaction_service_pb2.Interaction(
        event_id="8bdf3a1c-9e01-4d0a-8a53-5b0f4a6f8a10",
        user_id="u1",
        video_id="v1",
        kind="INTERACTION_KIND_LIKE",
    )
)


class Services(
    feed_service_pb2_grpc.FeedServiceServicer,
    search_service_pb2_grpc.SearchServiceServicer,
    interaction_service_pb2_grpc.InteractionServiceServicer,
):
    """Answers when the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = 0
        self.cancelled = 0

    async def _work(self) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def ListFeed(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> feed_service_pb2.ListFeedResponse:
        await self._work()
        return feed_service_pb2.ListFeedResponse()

    async def StreamFeed(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> AsyncIterator[feed_service_pb2.StreamFeedResponse]:
        for _ in range(3):
            await self._work()
            yield feed_service_pb2.StreamFeedResponse()

    async def ListSimilarVideos(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> search_service_pb2.ListSimilarVideosResponse:
        await self._work()
        return search_service_pb2.ListSimilarVideosResponse()

    async def RecordInteraction(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> interaction_service_pb2.RecordInteractionResponse:
        await self._work()
        return interaction_service_pb2.RecordInteractionResponse()


class Stage:
    """A server with a fixed limit, and stubs for it."""

    def __init__(self, services: Services, door: Door, channel: grpc.aio.Channel) -> None:
        self.services = services
        self.door = door
        self.feeds: Any = feed_service_pb2_grpc.FeedServiceStub(channel)
        self.searches: Any = search_service_pb2_grpc.SearchServiceStub(channel)
        self.interactions: Any = interaction_service_pb2_grpc.InteractionServiceStub(channel)

    async def under_way(self, calls: int) -> None:
        async with asyncio.timeout(10):
            while self.door.in_flight + self.door.recording != calls:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(clock: Callable[[], float] = time.perf_counter) -> AsyncIterator[Stage]:
    services = Services()
    door = Door(GradientLimit(minimum=LIMIT, maximum=LIMIT, initial=LIMIT), clock=clock)
    server = grpc.aio.server(interceptors=(GuardInterceptor(RuleChecker(), door=door),))
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(services, server)
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(services, server)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(services, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Stage(services, door, channel)
    finally:
        await server.stop(0)


async def refused(call: Any) -> float:
    """That a call is refused for overload; in how many seconds it may come again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "try again" in (caught.value.details() or "")
    trailers = dict(tuple(pair) for pair in caught.value.trailing_metadata() or ())
    details = Status.FromString(trailers[DETAILS_KEY]).details
    info = RetryInfo()
    assert any(detail.Unpack(info) for detail in details)
    return info.retry_delay.ToTimedelta().total_seconds()


async def test_searches_are_refused_first_then_feeds_and_interactions_pass() -> None:
    async with running() as stage:
        calls = [
            asyncio.ensure_future(stage.searches.ListSimilarVideos(SEARCH, timeout=30)) for _ in range(4)
        ]
        await stage.under_way(4)
        assert 0 < await refused(stage.searches.ListSimilarVideos(SEARCH, timeout=30)) <= 5

        calls += [asyncio.ensure_future(stage.feeds.ListFeed(FEED, timeout=30)) for _ in range(4)]
        await stage.under_way(8)
        assert 0 < await refused(stage.feeds.ListFeed(FEED, timeout=30)) <= 5
        assert 0 < await refused(anext(aiter(stage.feeds.StreamFeed(FEED, timeout=30)))) <= 5

        calls += [
            asyncio.ensure_future(stage.interactions.RecordInteraction(INTERACTION, timeout=30))
            for _ in range(8)
        ]
        await stage.under_way(16)
        await refused(stage.interactions.RecordInteraction(INTERACTION, timeout=30))
        assert stage.services.begun == 16

        stage.services.gate.set()
        await asyncio.gather(*calls)
        await stage.under_way(0)
        await stage.searches.ListSimilarVideos(SEARCH, timeout=30)


async def test_many_at_once_are_never_more_than_the_limit() -> None:
    async with running() as stage:
        calls = [asyncio.ensure_future(stage.feeds.ListFeed(FEED, timeout=30)) for _ in range(200)]
        await stage.under_way(8)
        async with asyncio.timeout(10):
            while sum(call.done() for call in calls) < 192:
                await asyncio.sleep(0.005)
        assert stage.services.begun == 8
        stage.services.gate.set()
        codes = [
            each.code() if isinstance(each, grpc.aio.AioRpcError) else each
            for each in await asyncio.gather(*calls, return_exceptions=True)
        ]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 192
        assert codes.count(feed_service_pb2.ListFeedResponse()) == 8


async def test_a_stream_counts_while_it_makes_a_page_and_not_while_it_is_read() -> None:
    async with running() as stage:
        stage.services.gate.set()
        stream = stage.feeds.StreamFeed(feed_service_pb2.StreamFeedRequest(user_id="u1"), timeout=30)
        assert [page async for page in stream] == [feed_service_pb2.StreamFeedResponse()] * 3
        assert stage.door.in_flight == 0

        stage.services.gate.clear()
        stream = stage.feeds.StreamFeed(feed_service_pb2.StreamFeedRequest(user_id="u1"), timeout=30)
        first = asyncio.ensure_future(anext(aiter(stream)))
        await stage.under_way(1)
        stream.cancel()
        await asyncio.wait([first])
        await stage.under_way(0)


async def test_a_call_that_runs_out_of_time_is_stopped_and_one_that_must_is_not_begun() -> None:
    now = 0.0
    async with running(clock=lambda: now) as stage:
        calls = [asyncio.ensure_future(stage.feeds.ListFeed(FEED, timeout=3)) for _ in range(6)]
        await stage.under_way(6)
        now = 60.0
        for each in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(each, grpc.aio.AioRpcError)
            assert each.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await stage.under_way(0)
        assert (stage.services.begun, stage.services.cancelled) == (6, 6)

        # Now such calls are known to take a minute.
        began = time.perf_counter()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage.feeds.ListFeed(FEED, timeout=30)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "nothing was begun" in (caught.value.details() or "")
        assert time.perf_counter() - began < 15
        assert stage.services.begun == 6
