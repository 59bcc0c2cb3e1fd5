"""Searches off the event loop: one thread, batches of whatever waits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import faiss

from keek_server.batching import Batcher
from keek_server.retrieval.live import Hits, LiveIndex, Query

_MAX_BATCH = 64
_MAX_WAITING = 4096


class Searcher:
    """Searches one index for concurrent callers."""

    def __init__(self, index: LiveIndex, executor: ThreadPoolExecutor) -> None:
        self._index = index
        self._executor = executor
        self._batcher: Batcher[Query, Hits] = Batcher(
            self._search, max_weight=_MAX_BATCH, max_waiting=_MAX_WAITING
        )

    async def search(self, query: Query) -> Hits:
        """What the index finds, best first; at most `query.k`."""
        return await self._batcher.submit(query)

    async def _search(self, batch: list[Query]) -> list[Hits]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._index.search, batch)


def search_executor() -> ThreadPoolExecutor:
    """The thread that searches. FAISS's own threads are off in it: calls are the parallelism."""
    return ThreadPoolExecutor(1, "faiss", initializer=lambda: faiss.omp_set_num_threads(1))
