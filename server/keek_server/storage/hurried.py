"""Reads that feeds wait for: soon, or not at all."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from keek_server.breaker import Breaker
from keek_server.errors import UnavailableError

T = TypeVar("T")

Read = Callable[[sa.Select[Any]], Coroutine[Any, Any, Sequence[Any]]]

_SETTLING_S: Final = 3.0
"""SQLAlchemy gives a connection two seconds to close."""


class HurriedReads:
    """Reads with a deadline that is a feed's, and a breaker before them."""

    def __init__(self, read: Read, *, deadline_s: float) -> None:
        """
        Args:
            read: Reads, and raises UnavailableError when the database is down.
            deadline_s: Of one read.
        """
        self._read = read
        self._deadline_s = deadline_s
        self._breaker = Breaker("the database", "sql", deadline_s=deadline_s)
        self._reading: set[asyncio.Task[Any]] = set()

    async def ask(self, query: sa.Select[Any]) -> Sequence[Any]:
        """The rows of a query.

        Raises:
            UnavailableError: When the database is down or late; at once while it is known to be.
        """
        self._breaker.check(lambda: self._ask(query))
        # Whether it answers is found out also for those who leave.
        return await asyncio.shield(self._keep(self._ask(query)))

    async def settle(self) -> None:
        """Waits a little for what was given up."""
        if self._reading:
            await asyncio.wait(self._reading, timeout=_SETTLING_S)

    async def _ask(self, query: sa.Select[Any]) -> Sequence[Any]:
        with self._breaker.asking():
            # Nobody waits for a connection that is given up: to close it, the driver asks the database.
            reading = self._keep(self._read(query))
            done, _ = await asyncio.wait([reading], timeout=self._deadline_s)
            if not done:
                reading.cancel()
                raise UnavailableError(f"the database took longer than {self._deadline_s * 1000:.0f} ms")
            return reading.result()

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that goes on, and ends quietly, when nobody waits for it any more."""
        task = asyncio.create_task(work)
        self._reading.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._reading.discard(task)
        if not task.cancelled():
            task.exception()
