"""Several listeners on one port are one server to callers."""

from __future__ import annotations

import grpc
import pytest

from keek_server.errors import SetupError
from keek_server.port import reserved_port
from keek_server.rpc.listeners import Listeners

METHOD = "/test.Test/Number"


def numbered(number: int, *, shares: int = 1) -> grpc.aio.Server:
    """A server that answers with its number."""

    async def answer(_request: bytes, _context: object) -> bytes:
        return bytes([number])

    server = grpc.aio.server(options=[("grpc.so_reuseport", shares)])
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Number": grpc.unary_unary_rpc_method_handler(answer)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    return server


async def ask(port: int) -> int:
    """Over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        answer = await call(b"", timeout=10)
        return answer[0]


async def test_connections_are_spread_over_the_listeners_and_all_end_together() -> None:
    with reserved_port("127.0.0.1:0") as port:
        listeners = Listeners([numbered(number) for number in range(3)])
        listeners.bind(f"127.0.0.1:{port}")
        await listeners.start()
        assert len({await ask(port) for _ in range(40)}) > 1
        await listeners.stop(1.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(port)


async def test_a_port_that_another_has_is_refused() -> None:
    with reserved_port("127.0.0.1:0") as port, pytest.raises(SetupError, match=rf"{port}.*KEEK_LISTEN"):
        Listeners([numbered(0, shares=0)]).bind(f"127.0.0.1:{port}")
