"""Searches off the event loop: one thread, batches of whatever waits."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import numpy.typing as npt

from keek_server.batching import Batcher
from keek_server.retrieval.index import Index, Rows, Scores

_MAX_BATCH = 64
_MAX_WAITING = 4096

_Query = tuple[npt.NDArray[np.float32], int]
_Found = tuple[Scores, Rows]


class Searcher:
    """Searches one index for concurrent callers."""

    def __init__(self, index: Index, executor: ThreadPoolExecutor) -> None:
        self._index = index
        self._executor = executor
        self._batcher: Batcher[_Query, _Found] = Batcher(
            self._search, max_weight=_MAX_BATCH, max_waiting=_MAX_WAITING
        )

    async def search(self, query: npt.NDArray[np.float32], k: int) -> _Found:
        """The k best rows for one query vector, float32 [dimension].

        Returns:
            Scores float32 [found] and rows int64 [found], best first; found <= k.
        """
        return await self._batcher.submit((query, k))

    async def _search(self, batch: list[_Query]) -> Sequence[_Found]:
        queries = np.stack([query for query, _ in batch])
        widest = max(k for _, k in batch)
        loop = asyncio.get_running_loop()
        scores, rows = await loop.run_in_executor(self._executor, self._index.search, queries, widest)
        return [
            _clip(row_scores, row_rows, k)
            for row_scores, row_rows, (_, k) in zip(scores, rows, batch, strict=True)
        ]


def search_executor() -> ThreadPoolExecutor:
    """The thread that searches. FAISS's own threads are off in it: calls are the parallelism."""
    return ThreadPoolExecutor(1, "faiss", initializer=lambda: faiss.omp_set_num_threads(1))


def _clip(scores: Scores, rows: Rows, k: int) -> _Found:
    found = rows[:k] >= 0
    return scores[:k][found], rows[:k][found]
