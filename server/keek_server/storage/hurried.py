"""Reads that feeds wait for: soon, or not at all."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from keek_server.breaker import Breaker, Call
from keek_server.errors import UnavailableError

T = TypeVar("T")

Query = sa.Select[Any] | sa.CompoundSelect[Any]
Parameters = Mapping[str, object]
Read = Callable[[Query, Parameters | None], Coroutine[Any, Any, Sequence[Any]]]

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
        self.deadline_s = deadline_s
        self._read = read
        self._breaker = Breaker("the database", "sql", deadline_s=deadline_s)
        self._reading: set[asyncio.Task[Any]] = set()

    def check(self, call: Call) -> None:
        """See `Breaker.check`: before `read`, for whoever waits for others first."""
        self._breaker.check(call)

    async def ask(self, query: Query, parameters: Parameters | None = None) -> Sequence[Any]:
        """The rows of a query.

        Raises:
            UnavailableError: When the database is down or late; at once while it is known to be.
        """
        self._breaker.check(lambda: self.read(query, parameters))
        # Whether it answers is found out also for those who leave.
        return await asyncio.shield(self._keep(self.read(query, parameters)))

    async def read(self, query: Query, parameters: Parameters | None = None) -> Sequence[Any]:
        """The rows of a query, whatever is known.

        Raises:
            UnavailableError: When the database is down or late.
        """
        with self._breaker.asking():
            # Nobody waits for a connection that is given up: to close it, the driver asks the database.
            reading = self._keep(self._read(query, parameters))
            done, _ = await asyncio.wait([reading], timeout=self.deadline_s)
            if not done:
                reading.cancel()
                raise UnavailableError(f"the database took longer than {self.deadline_s * 1000:.0f} ms")
            return reading.result()

    async def settle(self) -> None:
        """Waits a little for what was given up."""
        if self._reading:
            await asyncio.wait(self._reading, timeout=_SETTLING_S)

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
