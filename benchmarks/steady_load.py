"""Calls at a steady rate, made in this process."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import keek.aio


async def cancel(task: asyncio.Task[None]) -> None:
    """Ends a task, and waits until it has ended; raises what it failed with."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


class SteadyLoad(ABC):
    """Calls whether those before have been answered or not, and makes none twice."""

    def __init__(self, addresses: Sequence[str], *, per_s: float) -> None:
        """
        Args:
            addresses: Of servers, a connection each.
            per_s: How often `turn` is called, a second.
        """
        self._addresses = addresses
        self._every_s = 1.0 / per_s
        self._calls: set[asyncio.Task[None]] = set()

    @abstractmethod
    def turn(self, clients: Sequence[keek.aio.Client], number: int) -> None:
        """Starts the calls of one turn, counted from 0, by `start`."""

    def start(self, call: Coroutine[Any, Any, None]) -> None:
        """Has a call under way."""
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Calls until the block ends, and then waits for what is under way."""
        # Without retries: a call that fails has failed.
        clients = [keek.aio.Client(address, retry=None) for address in self._addresses]
        load = asyncio.create_task(self._run(clients))
        try:
            yield
        finally:
            try:
                await cancel(load)
            finally:
                await asyncio.gather(*self._calls)
                for client in clients:
                    await client.close()

    async def _run(self, clients: Sequence[keek.aio.Client]) -> None:
        began, number = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, began + number * self._every_s - time.perf_counter()))
            self.turn(clients, number)
            number += 1
