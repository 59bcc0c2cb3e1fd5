"""The states of both clients: unopened, opened, closed."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from client_drivers import DRIVERS, DriverType
from client_server import Fault, Server, serve
from patience import eventually

import keek
from keek.channel import Metadata
from keek.v1.feed_service_pb2 import ListFeedRequest, ListFeedResponse

State = keek.ClientState


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
def driver_type(request: pytest.FixtureRequest) -> DriverType:
    return request.param  # type: ignore[no-any-return]


async def test_a_client_opens_at_its_first_call(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    before = driver.client.state
    await driver.call("list_feed", "u1")
    assert (before, driver.client.state) == (State.UNOPENED, State.OPENED)
    await driver.close()


async def test_a_client_opens_when_it_is_entered(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    await driver.enter()
    entered = driver.client.state
    await driver.call("list_feed", "u1")
    await driver.close()
    assert (entered, driver.client.state) == (State.OPENED, State.CLOSED)


async def test_closing_twice_or_before_opening_is_harmless(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    await driver.close()
    await driver.close()
    assert driver.client.state is State.CLOSED


@pytest.mark.parametrize("used_before", [True, False])
async def test_a_closed_client_refuses_every_kind_of_call(
    driver_type: DriverType, server: Server, used_before: bool
) -> None:
    driver = driver_type(server.target)
    if used_before:
        await driver.call("list_feed", "u1")
    await driver.close()
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("list_feed", ("u1",)),
        ("like", ("u1", "v1")),
        ("record_interactions", ([],)),
    ]
    for name, arguments in calls:
        with pytest.raises(keek.ClientStateError, match="closed"):
            await driver.call(name, *arguments)
    iterators: list[tuple[str, tuple[Any, ...]]] = [
        ("stream_feed", ("u1",)),
        ("feed_pages", ("u1",)),
        ("watch_trending", ()),
    ]
    for name, arguments in iterators:
        with pytest.raises(keek.ClientStateError, match="closed"):
            await driver.collect(name, *arguments)
    with pytest.raises(keek.ClientStateError, match="closed"):
        await driver.enter()


async def test_a_closed_client_refuses_a_stream_when_it_is_asked_for(
    driver_type: DriverType, server: Server
) -> None:
    driver = driver_type(server.target)
    await driver.close()
    with pytest.raises(keek.ClientStateError):
        driver.client.stream_feed("u1")


@pytest.mark.parametrize("name", ["feed_pages", "stream_feed"])
async def test_an_iterator_of_a_client_closed_meanwhile_raises(
    driver_type: DriverType, server: Server, name: str
) -> None:
    driver = driver_type(server.target)
    iterator = getattr(driver.client, name)("u1")
    await driver.close()
    with pytest.raises(keek.ClientStateError):
        await driver.next_of(iterator)


async def test_an_open_client_cannot_be_entered(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    await driver.call("list_feed", "u1")
    with pytest.raises(keek.ClientStateError, match="open already"):
        await driver.enter()
    await driver.call("list_feed", "u1")
    await driver.close()


async def test_closing_cancels_a_running_call_without_cancelling_its_task(
    driver_type: DriverType, server: Server
) -> None:
    driver = driver_type(server.target)
    server.faults.add("ListFeed", Fault(delay_s=30))
    call = asyncio.create_task(driver.call("list_feed", "u1", timeout_s=60))
    await _until_attempted(server, "ListFeed")
    await driver.close()
    with pytest.raises(keek.CallCancelledError):
        await call


async def test_closing_ends_a_running_stream(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    server.faults.pause_s = 30
    stream = asyncio.create_task(driver.collect("stream_feed", "u1", page_count=3))
    await _until_attempted(server, "StreamFeed")
    await asyncio.sleep(0.1)
    await driver.close()
    with pytest.raises(keek.CallCancelledError):
        await stream


async def test_closing_ends_a_watch_in_which_nothing_changes(driver_type: DriverType, server: Server) -> None:
    driver = driver_type(server.target)
    watch = driver.client.watch_trending()
    for _ in range(3):
        await driver.next_of(watch)
    silent = asyncio.create_task(driver.next_of(watch))
    await asyncio.sleep(0.1)
    await driver.close()
    with pytest.raises(keek.CallCancelledError):
        await silent


async def test_a_cancelled_task_cancels_its_call(server: Server) -> None:
    async with keek.aio.Client(server.target) as client:
        server.faults.add("ListFeed", Fault(delay_s=30))
        call = asyncio.create_task(client.list_feed("u1", timeout_s=60))
        await _until_attempted(server, "ListFeed")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: server.faults.cancelled == ["ListFeed"])


async def test_a_cancelled_task_stays_cancelled_when_its_client_is_closed(server: Server) -> None:
    client = keek.aio.Client(server.target)
    server.faults.add("ListFeed", Fault(delay_s=30))
    call = asyncio.create_task(client.list_feed("u1", timeout_s=60))
    await _until_attempted(server, "ListFeed")
    call.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_calls_may_end_within_the_grace_of_close(server: Server) -> None:
    client = keek.aio.Client(server.target)
    server.faults.add("ListFeed", Fault(delay_s=0.3))
    call = asyncio.create_task(client.list_feed("u1"))
    await _until_attempted(server, "ListFeed")
    await client.close(grace_s=10)
    assert (await call).release_id == "r1"


async def test_an_asyncio_client_refuses_another_event_loop(server: Server) -> None:
    async with keek.aio.Client(server.target) as client:
        with pytest.raises(keek.ClientStateError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, client.list_feed("u1"))
        await client.list_feed("u1")


async def test_threads_share_a_blocking_client(server: Server) -> None:
    with keek.Client(server.target) as client:
        barrier = threading.Barrier(4)

        def work(_: int) -> str:
            barrier.wait(timeout=10)
            return client.like("u1", "v1").event_id

        done = await asyncio.gather(*(asyncio.to_thread(work, n) for n in range(4)))
    assert len(set(done)) == 4
    assert set(done) == set(server.interactions.stored)


def test_a_call_that_another_thread_closes_the_client_under_says_so() -> None:
    client = keek.Client("127.0.0.1:1")
    list_feed = client._stubs.feed.ListFeed

    def close_first(
        request: ListFeedRequest, timeout: float | None = None, metadata: Metadata | None = None
    ) -> ListFeedResponse:
        client.close()
        return list_feed(request, timeout=timeout, metadata=metadata)

    with pytest.raises(keek.ClientStateError, match="closed"):
        client._call(close_first, ListFeedRequest(), None, 1.0)


async def _until_attempted(server: Server, method: str) -> None:
    await eventually(lambda: server.faults.attempts[method] > 0)
