"""A release's collection in Milvus: filled, indexed, and its search effort measured."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from tqdm import tqdm

from keek_server.releases.registry import ReleaseRegistry
from keek_server.retrieval.build import IndexOptions
from keek_server.retrieval.index import RECALL_AT, IndexReport, Rows, Vectors, score
from keek_server.retrieval.milvus import MilvusIndex
from keek_server.retrieval.milvus_store import Milvus
from keek_server.retrieval.tuning import Recalls, reaches, recalls_at_k

PATIENT_S: Final = 120.0
"""For one call to Milvus of a publisher, whom no feed waits for."""

_ROWS_A_BATCH: Final = 10_000
_ROWS_A_SEGMENT: Final = 4_000_000
"""About as many vectors fill one of Milvus's segments (1 GiB), each of which has lists of its own."""
_ROWS_A_LIST: Final = 39
"""The least that k-means is content with, in Milvus as in FAISS."""
_DEPTHS: Final = (RECALL_AT, 400, 1600, 6400)
_QUERIES: Final = 256
_DEEP_QUERIES: Final = 32
"""For what lies deeper than RECALL_AT: so many rows each are enough."""
_RERANKS: Final = (1, 2, 4, 8)
_STEP: Final = 1.5
_LEAST_GAIN: Final = 0.0005


def build_collection(
    milvus: Milvus, release_id: str, vectors: Vectors, queries: Vectors, options: IndexOptions
) -> tuple[MilvusIndex, IndexReport]:
    """Fills a collection with a corpus, and measures its index; what is there of it already is replaced.

    Args:
        milvus: Gets it.
        release_id: Whose it is.
        vectors: float32 [n, dimension], the video vectors by row.
        queries: float32 [m, dimension], user vectors; recall is measured on the first `_QUERIES`.
        options: What is asked of it; Milvus looks after its memory itself.

    Raises:
        UnavailableError: When Milvus is gone, or late.
        SetupError: When it does not hold the rows in the end.
    """
    started = time.perf_counter()
    count, queries = len(vectors), queries[:_QUERIES]
    collection = milvus.create(release_id)
    with tqdm(total=count, unit="video", desc="filling Milvus", disable=None) as progress:
        for start in range(0, count, _ROWS_A_BATCH):
            part = vectors[start : start + _ROWS_A_BATCH]
            milvus.insert(collection, start, part)
            progress.update(len(part))
    nlist = 0 if count < options.exact_below else _lists(count)
    # One byte a value: what that loses, the whole vectors bring back.
    milvus.build(collection, "IVF_SQ8" if nlist else "FLAT", nlist)
    # Whole: an insert that is sent again, because its answer was lost, may be in it twice.
    milvus.open(release_id, count)
    report = IndexReport("milvus", count, nlist, 0, 1.0, len(queries), 0.0)
    if nlist:
        report = _tuned(milvus, collection, vectors, queries, report, options.recall_target)
    report = replace(report, build_s=time.perf_counter() - started)
    return MilvusIndex(milvus, collection, report, vectors), report


async def drop_outdated(registry: ReleaseRegistry, milvus: Milvus) -> None:
    """Drops the collections of releases that no plan can name any more; what is none of this registry stays.

    Raises:
        UnavailableError: When Milvus or the database is gone, or late.
    """
    release_ids = await asyncio.to_thread(milvus.releases)
    for release_id in await registry.removed(release_ids):
        await asyncio.to_thread(milvus.drop, release_id)


def _tuned(
    milvus: Milvus,
    collection: str,
    vectors: Vectors,
    queries: Vectors,
    report: IndexReport,
    target: float,
) -> IndexReport:
    """With the least nprobe of those tried that reaches the target at each depth, and the measured recall.

    Where nothing reaches it, it is the one behind which nothing is gained.
    """

    def measured(queries: Vectors, exact: Rows, tried: IndexReport) -> Recalls:
        depth = exact.shape[1]
        index = MilvusIndex(milvus, collection, tried, vectors)
        _, found = index.candidates(queries, depth, tried.effort(depth))
        # No two places alike: those that stayed empty hold no row.
        return recalls_at_k(np.where(found < 0, -1 - np.arange(depth), found), exact)

    def raised(depth: int, report: IndexReport) -> tuple[int, float]:
        own = queries if depth <= RECALL_AT else queries[:_DEEP_QUERIES]
        _, exact = score(own, vectors, None, depth)
        before = -1.0
        # More than what the depth before takes, though less than in proportion.
        start = report.efforts[-1][1] if report.efforts else 1
        for nprobe in _ladder(start, report.nlist):
            recalls = measured(own, exact, replace(report, nprobe=nprobe, efforts=((depth, nprobe),)))
            recall = float(recalls.mean())
            if reaches(recalls, target) or recall - before < _LEAST_GAIN:
                break
            before = recall
        return nprobe, recall

    depths = [depth for depth in _DEPTHS if depth <= len(vectors)] or [len(vectors)]
    for rerank in _RERANKS:
        nprobe, recall = raised(depths[0], replace(report, rerank=rerank))
        if recall >= target:
            break
    report = replace(
        report, rerank=rerank, nprobe=nprobe, recall_at_100=recall, efforts=((depths[0], nprobe),)
    )
    for depth in depths[1:]:
        nprobe, _ = raised(depth, report)
        report = replace(report, efforts=(*report.efforts, (depth, nprobe)))
    return report


def _lists(count: int) -> int:
    """Lists of a segment: 4 * sqrt(n), as in FAISS, unless they would have too little to learn from."""
    rows = min(count, _ROWS_A_SEGMENT)
    return max(1, min(int(4 * np.sqrt(rows)), rows // _ROWS_A_LIST))


def _ladder(start: int, most: int) -> Iterator[int]:
    while start < most:
        yield start
        start = max(start + 1, int(_STEP * start))
    yield most
