"""Searches off the event loop: one thread, batches of whatever waits."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import faiss

from keek_server.batching import Batcher
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Hits, Query

SIDE_BATCH = 8
"""For searches with filters, which cannot share a pass over the index: what came last waits for no more."""

_MAX_BATCH = 64
_MAX_WAITING = 4096


class Searcher:
    """Searches one index for concurrent callers."""

    def __init__(
        self,
        index: LiveIndex,
        executor: ThreadPoolExecutor,
        *,
        max_batch: int = _MAX_BATCH,
        max_delay_s: float = math.inf,
    ) -> None:
        """
        Args:
            index: Searched.
            executor: Of one thread.
            max_batch: The most queries that are searched together.
            max_delay_s: The longest that a query waits for its batch to begin; then it is refused.
        """
        self._index = index
        self._executor = executor
        self._batcher: Batcher[Query, Hits] = Batcher(
            self._search, max_weight=max_batch, max_waiting=_MAX_WAITING, max_delay_s=max_delay_s
        )

    async def search(self, query: Query) -> Hits:
        """What the index finds, best first; at most `query.k`.

        Raises:
            OverloadedError: When too many wait already.
            UnavailableError: When it waited for longer than `max_delay_s`.
        """
        return await self._batcher.submit(query)

    async def _search(self, batch: list[Query]) -> list[Hits]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._index.search, batch)


def search_executor() -> ThreadPoolExecutor:
    """The thread that searches. FAISS's own threads are off in it: calls are the parallelism."""
    return ThreadPoolExecutor(1, "faiss", initializer=lambda: faiss.omp_set_num_threads(1))
