"""Natural micro-batching: whatever waits while one batch is under way goes into the next."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from keek_server.errors import OverloadedError, UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Gathers concurrent calls into batches, one batch at a time, without a timer.

    A lone call starts at once: batching adds no wait when nothing is waiting. Calls
    that were cancelled while they waited are dropped.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        max_weight: int,
        max_waiting: int,
        max_delay_s: float = math.inf,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        """
        Args:
            run: Answers a batch, one result an item, in order. Its exception reaches every caller, and a
                RuntimeError where there are more or fewer results.
            max_weight: The largest sum of weights in a batch; a heavier item goes alone.
            max_waiting: Items that may wait before further ones are refused.
            max_delay_s: The longest that an item waits for its batch to begin.
            weigh: The weight of an item; 1 by default.
        """
        self._run = run
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._max_delay_s = max_delay_s
        self._weigh = weigh
        self._waiting: deque[tuple[Item, asyncio.Future[Result], float]] = deque()
        self._drainer: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Waits for the item's result.

        Raises:
            OverloadedError: When too many items wait already.
            UnavailableError: When it waited for longer than it may.
        """
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(f"{len(self._waiting)} requests are waiting already")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, time.monotonic()))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await future

    async def aclose(self) -> None:
        """Waits until everything submitted so far is answered."""
        if self._drainer is not None:
            await self._drainer

    async def _drain(self) -> None:
        while batch := self._take():
            await self._answer(batch)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        weight = 0
        oldest = time.monotonic() - self._max_delay_s
        while self._waiting:
            item, future, since = self._waiting[0]
            if since < oldest and not future.done():
                future.set_exception(UnavailableError(f"waited for longer than {self._max_delay_s:g} s"))
            if not future.done():
                weight += self._weigh(item)
                if batch and weight > self._max_weight:
                    break
                batch.append((item, future))
            self._waiting.popleft()
        return batch

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._results([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it belongs to the callers, and reaches each of them
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    async def _results(self, items: list[Item]) -> Sequence[Result]:
        results = await self._run(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for a batch of {len(items)}")
        return results
