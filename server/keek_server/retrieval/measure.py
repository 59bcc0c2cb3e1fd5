"""How fast and how completely an index answers, beside exact search over the same vectors.

All that is compared is timed in turns, and medians over the turns count: whatever else the machine does
meets all of it alike. Searches take one thread, as in the server.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from keek_server.retrieval.index import RECALL_AT, FaissIndex, Index, IndexReport, Rows, Vectors
from keek_server.retrieval.tuning import Recalls, exact_rows, recalls_at_k

T = TypeVar("T")

TOGETHER: Final = 32
"""Queries of one call whose throughput is compared with that of single ones."""

_SEARCHES: Final = 12 * TOGETHER
"""Of each index, a round."""
_EXACT: Final = 8
_LADDER: Final = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
_DEEP: Final = 1000
_DEEP_QUERIES: Final = 64
"""Enough for so many rows each."""


@dataclass(frozen=True, slots=True)
class Rung:
    """An index at one effort."""

    effort: int
    """nprobe or efSearch; 0 of an index that takes none."""
    is_tuned: bool
    """Whether it is the effort that the index was tuned to."""
    index: Index


@dataclass(frozen=True, slots=True)
class Measured:
    """What one rung does."""

    recall: float
    """Mean recall@k against exact search."""
    recall_error: float
    """The standard error of that mean."""
    p50_ms: float
    p99_ms: float
    """Of single searches."""
    together: float
    """Searches a second with TOGETHER of them in a call, over those with one."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured in the same turns."""

    exact_p50_ms: float
    measured: list[Measured]
    """Beside the rungs."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What a search finds that goes so deep, with the effort that the index was tuned to there."""

    depth: int
    effort: int
    recall: float


@dataclass(slots=True)
class _Times:
    """Of one rung, milliseconds or a ratio a round."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    together: list[float] = field(default_factory=list)

    def add(self, index: Index, queries: Vectors, k: int) -> None:
        def search(part: Vectors) -> None:
            index.search(part, k)

        single = timed(search, np.split(queries, len(queries)))
        batches = timed(search, np.split(queries, len(queries) // TOGETHER))
        self.p50.append(float(np.median(single)))
        self.p99.append(float(np.percentile(single, 99)))
        self.together.append(float(TOGETHER * np.median(single) / np.median(batches)))

    def measured(self, recalls: Recalls) -> Measured:
        medians = (float(np.median(own)) for own in (self.p50, self.p99, self.together))
        return Measured(float(recalls.mean()), float(recalls.std() / np.sqrt(len(recalls))), *medians)


def ladder(index: FaissIndex, report: IndexReport, k: int) -> list[Rung]:
    """The index at efforts from a quarter of the tuned one to four times it, ascending.

    Args:
        index: Searched.
        report: Of the index.
        k: The depth.
    """
    tuned = report.effort(k)
    if not tuned:
        return [Rung(0, True, index)]
    # HNSW keeps no fewer candidates than rows are wanted.
    least, most = (1, report.nlist) if report.nlist else (k, report.videos)
    efforts = sorted({tuned} | {min(max(least, int(tuned * factor)), most) for factor in _LADDER})
    return [
        Rung(effort, effort == tuned, index.at(replace(report, efforts=((k, effort),)))) for effort in efforts
    ]


def compare(
    rungs: Sequence[Rung],
    vectors: Vectors,
    queries: Vectors,
    k: int,
    *,
    rounds: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Comparison:
    """Measures rungs, and exact search, over the same queries.

    Args:
        rungs: Of indexes over the same rows.
        vectors: float32 [n, dimension], those rows.
        queries: float32 [m, dimension], m > 0.
        k: Rows wanted a query, at most n.
        rounds: Turns.
        progress: Told how many steps of how many are done.
    """

    def exact(query: Vectors) -> None:
        exact_rows(vectors, query, k)

    total = (1 + rounds) * len(rungs)
    wanted = exact_rows(vectors, queries, k)
    alone: list[float] = []
    times = [_Times() for _ in rungs]
    with one_thread():
        recalls = []
        for place, rung in enumerate(rungs):
            progress(place, total)
            recalls.append(_recalls(rung.index, queries, wanted))
        for turn in range(rounds):
            part = np.take(queries, range(turn * _SEARCHES, (turn + 1) * _SEARCHES), axis=0, mode="wrap")
            alone.append(float(np.median(timed(exact, np.split(part[:_EXACT], _EXACT)))))
            for place, (rung, own) in enumerate(zip(rungs, times, strict=True)):
                progress((1 + turn) * len(rungs) + place, total)
                own.add(rung.index, part, k)
    measured = [own.measured(recall) for own, recall in zip(times, recalls, strict=True)]
    return Comparison(float(np.median(alone)), measured)


def depths(index: Index, report: IndexReport, vectors: Vectors, queries: Vectors) -> list[Depth]:
    """The recall at every depth that an index was tuned to.

    Args:
        index: Searched.
        report: Of the index.
        vectors: float32 [n, dimension], its rows.
        queries: float32 [m, dimension], m > 0.
    """
    found = []
    for depth, effort in report.efforts:
        some = queries if depth <= _DEEP else queries[:_DEEP_QUERIES]
        recalls = _recalls(index, some, exact_rows(vectors, some, depth))
        found.append(Depth(depth, effort, float(recalls.mean())))
    return found


def timed(search: Callable[[T], object], queries: Iterable[T]) -> list[float]:
    """Milliseconds of each search."""
    took = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        took.append((time.perf_counter() - started) * 1e3)
    return took


@contextmanager
def one_thread() -> Iterator[None]:
    """Searches of this thread take no others to help, as in the server."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        faiss.omp_set_num_threads(threads)


def _recalls(index: Index, queries: Vectors, exact: Rows) -> Recalls:
    """Of each query. Few are searched together: of many, what is scored again would take much memory."""
    k = exact.shape[1]
    step = max(1, TOGETHER * RECALL_AT // k)
    found = [index.search(queries[start : start + step], k)[1] for start in range(0, len(queries), step)]
    return recalls_at_k(np.concatenate(found), exact)
