"""How many may do something at the same time, and how many may wait for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keek_server.errors import OverloadedError


class ConcurrencyLimiter:
    """First come, first served; whoever finds too many waiting is refused."""

    def __init__(self, max_concurrent: int, max_waiting: int) -> None:
        self._free = asyncio.Semaphore(max_concurrent)
        self._max_waiting = max_waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the block.

        Raises:
            OverloadedError: Too many wait already.
        """
        if self._free.locked() and self._waiting >= self._max_waiting:
            raise OverloadedError(f"{self._waiting} files wait to be decoded already", retry_after_s=2.0)
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
