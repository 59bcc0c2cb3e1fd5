"""How long a query waits for its turn, and with how many others it shares it."""

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from keek_server.errors import UnavailableError
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import FaissIndex
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Hits, Query
from keek_server.retrieval.searcher import Searcher, search_executor

QUERY = Query(np.ones(4, np.float32), 5)


class Held(LiveIndex):
    """An index whose searches take until they are let go."""

    def __init__(self) -> None:
        super().__init__(
            {VECTORS: FaissIndex.empty(4)}, IdTable.build([]), {}, fresh_columns={}, fresh_limit=1
        )
        self.go = threading.Event()
        self.batches: list[int] = []

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        self.batches.append(len(queries))
        self.go.wait(10)
        return super().search(queries)


async def waiting(searcher: Searcher, count: int) -> list[asyncio.Task[Hits]]:
    tasks = [asyncio.create_task(searcher.search(QUERY)) for _ in range(count)]
    await asyncio.sleep(0.3)
    return tasks


async def test_a_query_that_waited_too_long_is_refused_and_not_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited_s = 0.0
    # Time that a busy machine loses must not count.
    monkeypatch.setattr("keek_server.batching.time", SimpleNamespace(monotonic=lambda: waited_s))
    index = Held()
    with search_executor() as executor:
        searcher = Searcher(index, executor, max_batch=2, max_delay_s=0.1)
        tasks = await waiting(searcher, 5)
        waited_s = 0.2
        index.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Hits] * 2 + [UnavailableError] * 3
    assert index.batches == [2]


@pytest.mark.parametrize(("max_batch", "batches"), [(2, [2, 2, 1]), (64, [5])])
async def test_a_batch_is_no_larger_than_it_may_be(max_batch: int, batches: list[int]) -> None:
    index = Held()
    index.go.set()
    with search_executor() as executor:
        searcher = Searcher(index, executor, max_batch=max_batch)
        await asyncio.gather(*(searcher.search(QUERY) for _ in range(5)))
    assert index.batches == batches


async def test_without_a_limit_a_query_waits_as_long_as_it_takes() -> None:
    index = Held()
    with search_executor() as executor:
        tasks = await waiting(Searcher(index, executor, max_batch=1), 3)
        index.go.set()
        assert len(await asyncio.gather(*tasks)) == 3


@pytest.mark.parametrize("k", [0, -202])
def test_a_query_for_nothing_is_refused_before_it_can_share_a_batch(k: int) -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        Query(np.ones(4, np.float32), k)
