"""A server listens on a port that it has, and does not let more calls wait than it is told."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest

from keek_server.errors import SetupError
from keek_server.port import reserved_port
from keek_server.rpc.server import bind, waiting_options

METHOD = "/test.Test/Number"
LIMIT = 9
CALLS = 40
TAKEN = 4
"""Calls that a server may have taken up by the time its loop stands still."""


async def test_a_port_that_another_has_is_refused() -> None:
    with reserved_port("127.0.0.1:0") as port, pytest.raises(SetupError, match=rf"{port}.*KEEK_LISTEN"):
        bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), f"127.0.0.1:{port}")


async def test_what_waits_on_top_of_the_limit_is_ended_without_a_turn_of_the_loop() -> None:
    released = threading.Event()

    async def answer(_request: bytes, _context: object) -> bytes:
        # On purpose on the loop: nothing is taken up meanwhile.
        assert released.wait(10.0)
        return b""

    def flood(port: int) -> tuple[set[grpc.StatusCode], int, int]:
        """What calls ended with that did while the loop stood still, how many these were, and good ones."""
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            calls = [call.future(b"", timeout=10.0) for _ in range(CALLS)]
            give_up = time.monotonic() + 5.0
            while sum(each.done() for each in calls) < CALLS - LIMIT - TAKEN and time.monotonic() < give_up:
                time.sleep(0.01)
            ended = [each.code() for each in calls if each.done()]
            released.set()
            return set(ended), len(ended), sum(each.code() is grpc.StatusCode.OK for each in calls)

    server = grpc.aio.server(options=waiting_options(LIMIT))
    handlers = {"Number": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        codes, ended, good = await asyncio.to_thread(flood, port)
    finally:
        released.set()
        await server.stop(1.0)
    assert codes == {grpc.StatusCode.CANCELLED}
    assert ended >= CALLS - LIMIT - TAKEN
    assert 1 <= good <= LIMIT + TAKEN
