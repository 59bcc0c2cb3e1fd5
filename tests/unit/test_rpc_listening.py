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
TAKEN = 1
"""A server asks for one call at a time, and has asked for the next one before its loop stands still."""
WAIT_S = 60.0


async def test_a_port_that_another_has_is_refused() -> None:
    with reserved_port("127.0.0.1:0") as port, pytest.raises(SetupError, match=rf"{port}.*KEEK_LISTEN"):
        bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), f"127.0.0.1:{port}")


class Standstill:
    """Of a loop: a call has begun to keep it, and goes on until it is released."""

    def __init__(self) -> None:
        self.begun, self.released = threading.Event(), threading.Event()


@asynccontextmanager
async def serving(standstill: Standstill) -> AsyncIterator[int]:
    """The port of a server that answers once it is released."""

    async def answer(_request: bytes, _context: object) -> bytes:
        # On purpose on the loop: nothing is taken up meanwhile.
        standstill.begun.set()
        assert standstill.released.wait(WAIT_S)
        return b""

    server = grpc.aio.server(options=waiting_options(LIMIT))
    handlers = {"Number": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        standstill.released.set()
        await server.stop(1.0)


@contextmanager
def calls_to(port: int, count: int) -> Iterator[list[grpc.CallFuture[bytes]]]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        yield [call.future(b"", timeout=WAIT_S) for _ in range(count)]


@contextmanager
def flood_of(port: int, standstill: Standstill) -> Iterator[list[grpc.CallFuture[bytes]]]:
    """Calls that come while the loop stands still: of others, how many are taken up is chance."""
    with calls_to(port, 1) as (first,):
        assert standstill.begun.wait(WAIT_S)
        with calls_to(port, CALLS) as calls:
            yield calls
        assert first.code() is grpc.StatusCode.OK


def those_ended(calls: list[grpc.CallFuture[bytes]]) -> list[grpc.StatusCode]:
    """What those ended with that did while the loop stood still."""
    give_up = time.monotonic() + WAIT_S / 2
    while sum(each.done() for each in calls) < CALLS - LIMIT - TAKEN and time.monotonic() < give_up:
        time.sleep(0.01)
    return [each.code() for each in calls if each.done()]


async def test_what_waits_on_top_of_the_limit_is_ended_without_a_turn_of_the_loop() -> None:
    standstill = Standstill()

    def flood(port: int) -> tuple[list[grpc.StatusCode], int]:
        with flood_of(port, standstill) as calls:
            ended = those_ended(calls)
            standstill.released.set()
            return ended, sum(each.code() is grpc.StatusCode.OK for each in calls)

    async with serving(standstill) as port:
        ended, good = await asyncio.to_thread(flood, port)
    assert set(ended) == {grpc.StatusCode.CANCELLED}
    assert len(ended) >= CALLS - LIMIT - TAKEN
    assert 1 <= good <= LIMIT + TAKEN


async def test_a_second_server_in_the_loop_has_a_queue_of_its_own() -> None:
    standstill = Standstill()

    def flood(port: int, own_port: int) -> set[grpc.StatusCode]:
        """What calls to the other server end with, made while one is full."""
        with flood_of(port, standstill) as calls, calls_to(own_port, LIMIT // 2) as others:
            assert those_ended(calls)
            standstill.released.set()
            return {each.code() for each in others}

    async with serving(standstill) as port, serving(standstill) as own_port:
        assert await asyncio.to_thread(flood, port, own_port) == {grpc.StatusCode.OK}
