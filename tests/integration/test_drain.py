"""What callers see of a server that stops: nothing, or a status that they repeat."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keek.v1 import feed_service_pb2 as feed_pb
from keek.v1 import feed_service_pb2_grpc as feed_rpc
from keek.v1 import interaction_service_pb2 as interaction_pb
from keek.v1 import interaction_service_pb2_grpc as interaction_rpc
from keek.v1 import trending_service_pb2 as trending_pb
from keek.v1 import trending_service_pb2_grpc as trending_rpc
from keek_server.rpc.drain import Drain
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.rules import RuleChecker
from keek_server.rpc.server import Health, stop_servers
from keek_server.settings import Settings

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Slow(
    feed_rpc.FeedServiceServicer,
    interaction_rpc.InteractionServiceServicer,
    trending_rpc.TrendingServiceServicer,
):
    """Answers when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.entered = 0
        self.left: list[str] = []

    async def ListFeed(self, _request: Any, _context: Any) -> feed_pb.ListFeedResponse:  # noqa: N802
        await self._wait("ListFeed")
        return feed_pb.ListFeedResponse(release_id="r")

    async def StreamFeed(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> AsyncIterator[feed_pb.StreamFeedResponse]:
        yield feed_pb.StreamFeedResponse(release_id="first")
        await self._wait("StreamFeed")
        yield feed_pb.StreamFeedResponse(release_id="second")

    async def RecordInteractions(  # noqa: N802
        self, requests: AsyncIterator[Any], _context: Any
    ) -> interaction_pb.RecordInteractionsResponse:
        self.entered += 1
        async for _ in requests:
            pass
        return interaction_pb.RecordInteractionsResponse()

    async def WatchTrending(  # noqa: N802
        self, _request: Any, _context: Any
    ) -> AsyncIterator[trending_pb.WatchTrendingResponse]:
        yield trending_pb.WatchTrendingResponse()
        await self._wait("WatchTrending")

    async def _wait(self, name: str) -> None:
        self.entered += 1
        try:
            await self.let.wait()
        finally:
            self.left.append(name)


@dataclass
class Stopping:
    """A server that can be told to stop, and a channel to it that repeats nothing."""

    servicer: Slow
    channel: grpc.aio.Channel
    stop: Callable[[], asyncio.Task[None]]
    health: Health = field(default_factory=Health)

    async def entered(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.servicer.entered < count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def stoppable(**settings: float) -> AsyncIterator[Stopping]:
    drain, servicer, health = Drain(), Slow(), Health()
    server = grpc.aio.server(interceptors=(GuardInterceptor(RuleChecker(), drain=drain),))
    feed_rpc.add_FeedServiceServicer_to_server(servicer, server)
    interaction_rpc.add_InteractionServiceServicer_to_server(servicer, server)
    trending_rpc.add_TrendingServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await health.set(("",), serving=True)
    await server.start()
    tasks: list[asyncio.Task[None]] = []

    def stop() -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(stop_servers([server], health, drain, Settings(**settings))))
        return tasks[-1]

    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Stopping(servicer, channel, stop, health)
    servicer.let.set()
    if not tasks:
        stop()
    await asyncio.gather(*tasks)


async def test_running_calls_finish_and_so_do_streams_with_an_end() -> None:
    async with stoppable(drain_s=20.0) as server:
        stub = feed_rpc.FeedServiceStub(server.channel)
        page = asyncio.ensure_future(stub.ListFeed(feed_pb.ListFeedRequest(user_id="u1")))
        stream = stub.StreamFeed(feed_pb.StreamFeedRequest(user_id="u1", page_count=2))
        assert (await stream.read()).release_id == "first"
        await server.entered(2)
        stopped = server.stop()
        await asyncio.sleep(0.2)
        server.servicer.let.set()
        assert (await page).release_id == "r"
        assert (await stream.read()).release_id == "second"
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        async with asyncio.timeout(5):
            await stopped


async def test_streams_without_an_end_end_at_once_as_unavailable() -> None:
    async with stoppable(drain_s=20.0) as server:
        watch = trending_rpc.TrendingServiceStub(server.channel).WatchTrending(
            trending_pb.WatchTrendingRequest()
        )
        health = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        statuses = health_pb2.HealthCheckResponse
        assert (await health.read()).status == statuses.SERVING
        await watch.read()
        await server.entered(1)
        stopped = server.stop()
        async with asyncio.timeout(5):
            assert (await health.read()).status == statuses.NOT_SERVING
            for call in (watch, health):
                with pytest.raises(grpc.aio.AioRpcError, match="another one answers"):
                    await call.read()
                assert await call.code() is UNAVAILABLE
            await stopped
        assert server.servicer.left == ["WatchTrending"]


async def test_what_outlasts_the_grace_ends_as_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    # The calls' ends reach their callers in this time: no pause of the machine is to take it up.
    monkeypatch.setattr("keek_server.rpc.server._ENDING_S", 10.0)
    async with stoppable(drain_s=0.3) as server:
        stub = feed_rpc.FeedServiceStub(server.channel)
        page = stub.ListFeed(feed_pb.ListFeedRequest(user_id="u1"))
        stream = stub.StreamFeed(feed_pb.StreamFeedRequest(user_id="u1", page_count=2))
        await stream.read()
        sent = interaction_rpc.InteractionServiceStub(server.channel).RecordInteractions()
        await sent.wait_for_connection()
        await server.entered(3)
        stopped = server.stop()
        async with asyncio.timeout(9):
            with pytest.raises(grpc.aio.AioRpcError, match="another one answers") as refused:
                await page
            assert refused.value.code() is UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError, match="another one answers"):
                await stream.read()
            assert await stream.code() is UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError, match="another one answers"):
                await sent
            assert await sent.code() is UNAVAILABLE
            await stopped
        assert sorted(server.servicer.left) == ["ListFeed", "StreamFeed"]


async def test_calls_are_taken_while_load_balancers_learn_of_it() -> None:
    async with stoppable(drain_s=5.0, drain_delay_s=5.0) as server:
        server.servicer.let.set()
        stopped = server.stop()
        await asyncio.sleep(0.1)
        health = health_pb2_grpc.HealthStub(server.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        page = await feed_rpc.FeedServiceStub(server.channel).ListFeed(feed_pb.ListFeedRequest(user_id="u1"))
        assert page.release_id == "r"
        await stopped


async def test_a_caller_that_leaves_is_no_end_of_the_server() -> None:
    async with stoppable() as server:
        call = feed_rpc.FeedServiceStub(server.channel).ListFeed(feed_pb.ListFeedRequest(user_id="u1"))
        await server.entered(1)
        call.cancel()
        async with asyncio.timeout(5):
            while not server.servicer.left:
                await asyncio.sleep(0.01)
        assert await call.code() is grpc.StatusCode.CANCELLED


async def test_calls_that_grpc_has_not_handed_over_are_refused_and_not_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine, the threads of gRPC wait for longer than a server's usual 10 ms.
    monkeypatch.setattr("keek_server.rpc.drain._QUIET_S", 0.3)
    monkeypatch.setattr("keek_server.rpc.drain._QUIET_WITHIN_S", 20.0)
    async with stoppable(drain_s=5.0) as server:
        server.servicer.let.set()
        stub = feed_rpc.FeedServiceStub(server.channel)
        codes: Counter[grpc.StatusCode] = Counter()

        async def call_until_stopped() -> None:
            while not stopped.done():
                page = stub.ListFeed(feed_pb.ListFeedRequest(user_id="u1"))
                codes[await page.code()] += 1
                if await page.code() is not grpc.StatusCode.OK:
                    await asyncio.sleep(2.0)  # as whoever repeats a call does

        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        callers = [asyncio.create_task(call_until_stopped()) for _ in range(64)]
        while codes[grpc.StatusCode.OK] < 200:
            await asyncio.sleep(0.01)
        await server.stop()
        stopped.set_result(None)
        await asyncio.gather(*callers)
        assert set(codes) == {grpc.StatusCode.OK, UNAVAILABLE}
