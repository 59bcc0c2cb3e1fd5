"""How much of an index has to be searched to find what exact search finds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from keek_server.retrieval.engines import Filled
from keek_server.retrieval.index import RECALL_AT, Efforts, FaissIndex, IndexReport, Rows, Vectors
from keek_server.retrieval.kinds import IndexKind

DEPTHS: Final = tuple(RECALL_AT << step for step in range(8))
"""How many of the best rows are looked for. Filters need more than a page of them."""

_DEPTHS_HNSW: Final = DEPTHS[:4]
"""Its searches keep as many candidates as rows are wanted: for thousands it is the wrong kind."""
_DEEP: Final = 1000
_DEEP_QUERIES: Final = 64
"""Enough for so many rows each."""
_GENEROUS: Final = 1.5
_RERANKS: Final[Mapping[IndexKind, Sequence[int]]] = {
    "ivf_fp16": (0, 1, 2),
    # Scores that are shown come from whole vectors.
    "ivf_sq8": (1, 2, 4, 8, 16),
    "ivf_pq": (1, 2, 4, 8, 16, 32),
}
_LADDER: Final = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_LEAST_GAIN: Final = 0.0005


def tune(
    filled: Filled, vectors: Vectors, queries: Vectors, report: IndexReport, target: float
) -> IndexReport:
    """The report, with the least effort that reaches the target at every depth, and the measured recall.

    Where nothing reaches it, as when codes are too coarse, it is the effort behind which nothing is gained.

    Args:
        filled: Holds n rows.
        vectors: float32 [n, dimension], the same rows.
        queries: float32 [m, dimension].
        report: Of the index; what is measured here is filled in.
        target: Mean recall.
    """
    if report.kind == "exact":
        return report
    known = _DEPTHS_HNSW if report.kind == "hnsw" else DEPTHS
    depths = [depth for depth in known if depth <= len(vectors)] or [len(vectors)]
    wanted = _wanted(vectors, queries, depths)
    if filled.lists is not None and filled.centroids is not None:
        report = _by_lists(filled.lists, filled.centroids, queries, report, wanted, target)
    if report.kind == "hnsw":
        report = replace(report, efforts=tuple((depth, depth) for depth in depths))
    if report.kind in _RERANKS:
        report = _with_rerank(filled, vectors, queries, report, wanted, target)
    efforts: Efforts = ()
    for depth, exact in wanted.items():
        effort = _raised(filled, vectors, _some(queries, depth), report, exact, target)
        # Rounding may ask for less deeper down.
        efforts = (*efforts, (depth, max(effort, efforts[-1][1] if efforts else 0)))
    report = replace(report, efforts=efforts, nprobe=efforts[0][1] if report.nlist else 0)
    recall = _recall(filled, vectors, queries, report, wanted[depths[0]])
    return replace(report, recall_at_100=recall)


def recall_at_k(found: Rows, exact: Rows) -> float:
    """Mean share of the exact rows [n, k] that were found [n, k]."""
    hits = [len(np.intersect1d(f, e, assume_unique=True)) for f, e in zip(found, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def _wanted(vectors: Vectors, queries: Vectors, depths: Sequence[int]) -> dict[int, Rows]:
    """By depth, the exact rows of each query: int64 [m, depth]."""
    wanted: dict[int, Rows] = {}
    for group in (
        [depth for depth in depths if depth <= _DEEP],
        [depth for depth in depths if depth > _DEEP],
    ):
        if group:
            exact = _exact(vectors, _some(queries, group[-1]), group[-1])
            wanted |= {depth: exact[:, :depth] for depth in group}
    return wanted


def _some(queries: Vectors, depth: int) -> Vectors:
    return queries if depth <= _DEEP else queries[:_DEEP_QUERIES]


def _exact(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    _, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(rows)


def _by_lists(
    lists: Rows,
    centroids: Vectors,
    queries: Vectors,
    report: IndexReport,
    wanted: dict[int, Rows],
    target: float,
) -> IndexReport:
    """nprobe without a search: a row is met if its list is among the nprobe that come first for a query."""
    _, ranked = faiss.knn(queries, centroids, report.nlist, metric=faiss.METRIC_INNER_PRODUCT)
    place = np.empty_like(ranked)
    np.put_along_axis(place, ranked, np.broadcast_to(np.arange(report.nlist), ranked.shape), axis=1)
    efforts = []
    for depth, exact in wanted.items():
        needed = np.take_along_axis(place[: len(exact)], lists[exact], axis=1) + 1
        efforts.append((depth, _quantile(needed, target)))
    return replace(report, efforts=tuple(efforts), nprobe=efforts[0][1])


def _with_rerank(
    filled: Filled,
    vectors: Vectors,
    queries: Vectors,
    report: IndexReport,
    wanted: dict[int, Rows],
    target: float,
) -> IndexReport:
    """The fewest candidates of which the codes lose no more than is allowed, at any depth."""
    # In more lists than needed, so that what is lost is lost by the codes.
    generous = tuple((depth, int(_GENEROUS * effort) + 1) for depth, effort in report.efforts)
    for rerank in _RERANKS[report.kind]:
        tried = replace(report, rerank=rerank, efforts=generous)
        if all(
            _recall(filled, vectors, _some(queries, depth), tried, exact) >= target
            for depth, exact in wanted.items()
        ):
            break
    return replace(report, rerank=rerank)


def _quantile(needed: npt.NDArray[np.int64], target: float) -> int:
    ascending = np.sort(needed, axis=None)
    return int(ascending[min(len(ascending), int(np.ceil(target * len(ascending)))) - 1])


def _raised(
    filled: Filled, vectors: Vectors, queries: Vectors, report: IndexReport, exact: Rows, target: float
) -> int:
    """The effort for this depth, raised until the target is reached or nothing more is gained."""
    depth = exact.shape[1]
    start, before = report.effort(depth), -1.0
    # Rounding may give two lists or two rows another order than the exact search saw: one list more.
    ladder = [start, start + 1, *(int(start * factor) for factor in _LADDER[1:])]
    for effort in sorted({min(own, report.nlist or own) for own in ladder}):
        tried = replace(report, efforts=((depth, effort),))
        recall = _recall(filled, vectors, queries, tried, exact)
        if recall >= target or (effort > start + 1 and recall - before < _LEAST_GAIN):
            return effort
        before = recall
    return effort


def _recall(filled: Filled, vectors: Vectors, queries: Vectors, report: IndexReport, exact: Rows) -> float:
    _, found = FaissIndex(filled.index, report, vectors).search(queries, exact.shape[1])
    return recall_at_k(found, exact)
