"""Several gRPC servers of one process, on one port.

A server of grpc.aio takes up one call in a turn of the event loop, since it has one call requested at a time:
those of a burst wait inside it, a turn each, before anything of ours sees them. The kernel spreads
connections over the listeners of a port, and each of them takes up a call in the same turn.
"""

import asyncio
from collections.abc import Sequence

import grpc

from keek_server.errors import SetupError


class Listeners:
    """Servers that are alike, used as one."""

    def __init__(self, servers: Sequence[grpc.aio.Server]) -> None:
        """
        Args:
            servers: They share ports (`grpc.so_reuseport`), not yet bound nor started.
        """
        self._servers = servers

    def bind(self, address: str) -> None:
        """Binds them all.

        Args:
            address: host:port, where the port is a number that is held for this process (`reserved_port`).

        Raises:
            SetupError: When it cannot be had.
        """
        try:
            for server in self._servers:
                server.add_insecure_port(address)
        except RuntimeError as error:
            raise SetupError(f"cannot listen on {address}: {error} (KEEK_LISTEN)") from error

    async def start(self) -> None:
        """Takes connections from here on."""
        for server in self._servers:
            await server.start()

    async def stop(self, grace_s: float) -> None:
        """Takes no connection any more, and tells clients to go elsewhere with their next call.

        Args:
            grace_s: Seconds that calls have that run.
        """
        await asyncio.gather(*(server.stop(grace_s) for server in self._servers))
