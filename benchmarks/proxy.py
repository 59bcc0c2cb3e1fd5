"""A TCP proxy on this machine that can stop passing anything on, as networks do."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from keek_server.embedded.ports import HOST

_CHUNK_BYTES: Final = 65_536
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Proxy:
    """Stands before one port. It passes everything on at first."""

    def __init__(self, target_port: int) -> None:
        """
        Args:
            target_port: Of a server on this machine.
        """
        self.port = 0
        """Its own; 0 before `start`."""
        self._target_port = target_port
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens; on the same port as before, where it has listened before."""
        self._server = await asyncio.start_server(self._connected, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def hold(self) -> None:
        """Takes connections as ever, and lets no byte through, nor the end of a connection: what it has read
        goes on when it passes on again."""
        self._passing.clear()

    async def refuse(self) -> None:
        """Takes no connection, and resets those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def pass_on(self) -> None:
        """Passes everything on."""
        self._passing.set()
        if self._server is None:
            await self.start()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._passing.wait()
            target_reader, target_writer = await asyncio.open_connection(HOST, self._target_port)
            writers.append(target_writer)
            ways = {
                asyncio.create_task(self._pump(reader, target_writer)),
                asyncio.create_task(self._pump(target_reader, writer)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        except OSError:
            pass  # the target takes no connection: neither does this one, then
        finally:
            for each in writers:
                await _reset(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                chunk = await reader.read(_CHUNK_BYTES)
                await self._passing.wait()
                if not chunk:
                    break
                writer.write(chunk)
                await writer.drain()


async def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        # Closed without lingering, a connection is reset, and does not just end.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()
        await writer.wait_closed()


@asynccontextmanager
async def running_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy that runs until the block is left."""
    proxy = Proxy(target_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.refuse()
