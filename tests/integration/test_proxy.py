"""The proxy that tests and benchmarks put before servers: passes, holds, refuses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from benchmarks.proxy import Proxy, running_proxy

HOST = "127.0.0.1"


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Before a server that answers each line with itself."""

    ended: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(line)
        writer.close()
        ended.append(writer)

    server = await asyncio.start_server(echo, HOST, 0)
    async with running_proxy(server.sockets[0].getsockname()[1]) as running:
        yield running
    server.close()
    for writer in ended:
        with suppress(ConnectionError):
            await writer.wait_closed()


class Caller:
    """One connection to the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    async def __aenter__(self) -> "Caller":
        self.reader, self.writer = await asyncio.open_connection(HOST, self._proxy.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def ask(self, text: bytes) -> bytes:
        self.writer.write(text + b"\n")
        return (await self.reader.readline()).rstrip()


async def test_it_passes_everything_on(proxy: Proxy) -> None:
    async with Caller(proxy) as caller:
        assert await caller.ask(b"hello") == b"hello"
        assert await caller.ask(b"x" * 50_000) == b"x" * 50_000


async def test_while_it_holds_connections_are_taken_and_nothing_comes_back_until_it_passes(
    proxy: Proxy,
) -> None:
    async with Caller(proxy) as before:
        assert await before.ask(b"1") == b"1"
        proxy.hold()
        async with Caller(proxy) as after:
            waiting = [asyncio.create_task(before.ask(b"2")), asyncio.create_task(after.ask(b"3"))]
            done, _ = await asyncio.wait(waiting, timeout=0.2)
            assert not done
            await proxy.pass_on()
            async with asyncio.timeout(60):
                assert await asyncio.gather(*waiting) == [b"2", b"3"]
            assert await before.ask(b"4") == b"4"


async def test_refused_connections_fail_and_those_there_are_end(proxy: Proxy) -> None:
    async with Caller(proxy) as caller:
        assert await caller.ask(b"1") == b"1"
        await proxy.refuse()
        with pytest.raises(ConnectionError):
            await caller.ask(b"2")
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(HOST, proxy.port)
    await proxy.pass_on()
    async with Caller(proxy) as again:
        assert await again.ask(b"3") == b"3"


async def test_a_target_that_is_gone_is_no_error_of_the_proxy() -> None:
    async with running_proxy(1) as proxy, Caller(proxy) as caller:
        with pytest.raises(ConnectionError):
            await caller.reader.readexactly(1)
