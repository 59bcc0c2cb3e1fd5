"""A server listens on a port that it has, and does not let more calls wait than it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from keek_server.errors import SetupError
from keek_server.port import reserved_port
from keek_server.rpc.server import bind, waiting_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

METHOD = "/test.Test/Number"
LIMIT = 9
CALLS = 40
TAKEN = 11
"""More calls than a server takes up before its loop stands still: how many is chance. Half are left."""


async def test_a_port_that_another_has_is_refused() -> None:
    with reserved_port("127.0.0.1:0") as port, pytest.raises(SetupError, match=rf"{port}.*KEEK_LISTEN"):
        bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), f"127.0.0.1:{port}")


@asynccontextmanager
async def serving(released: threading.Event) -> AsyncIterator[int]:
    """The port of a server that answers once it is released."""

    async def answer(_request: bytes, _context: object) -> bytes:
        # On purpose on the loop: nothing is taken up meanwhile.
        assert released.wait(10.0)
        return b""

    server = grpc.aio.server(options=waiting_options(LIMIT))
    handlers = {"Number": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        released.set()
        await server.stop(1.0)


@contextmanager
def calls_to(port: int, count: int) -> Iterator[list[grpc.CallFuture[bytes]]]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        yield [call.future(b"", timeout=10.0) for _ in range(count)]


def those_ended(calls: list[grpc.CallFuture[bytes]]) -> list[grpc.StatusCode]:
    """What those ended with that did while the loop stood still."""
    give_up = time.monotonic() + 5.0
    while sum(each.done() for each in calls) < CALLS - LIMIT - TAKEN and time.monotonic() < give_up:
        time.sleep(0.01)
    return [each.code() for each in calls if each.done()]


async def test_what_waits_on_top_of_the_limit_is_ended_without_a_turn_of_the_loop() -> None:
    released = threading.Event()

    def flood(port: int) -> tuple[list[grpc.StatusCode], int]:
        with calls_to(port, CALLS) as calls:
            ended = those_ended(calls)
            released.set()
            return ended, sum(each.code() is grpc.StatusCode.OK for each in calls)

    async with serving(released) as port:
        ended, good = await asyncio.to_thread(flood, port)
    assert set(ended) == {grpc.StatusCode.CANCELLED}
    assert len(ended) >= CALLS - LIMIT - TAKEN
    assert 1 <= good <= LIMIT + TAKEN


async def test_a_second_server_in_the_loop_has_a_queue_of_its_own() -> None:
    released = threading.Event()

    def flood(port: int, own_port: int) -> set[grpc.StatusCode]:
        """What calls to the other server end with, made while one is full."""
        with calls_to(port, CALLS) as calls, calls_to(own_port, LIMIT // 2) as others:
            assert those_ended(calls)
            released.set()
            return {each.code() for each in others}

    async with serving(released) as port, serving(released) as own_port:
        assert await asyncio.to_thread(flood, port, own_port) == {grpc.StatusCode.OK}
