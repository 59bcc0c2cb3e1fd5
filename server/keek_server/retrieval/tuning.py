"""How much of an index has to be searched to find what exact search finds.

Recall is measured on a sample of queries. So that other queries find as much, it is the mean with the
sampling error taken off that has to reach the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt

from keek_server.retrieval.engines import Filled
from keek_server.retrieval.index import RECALL_AT, FaissIndex, IndexReport, Rows, Vectors
from keek_server.retrieval.kinds import IndexKind

DEPTHS: Final = tuple(RECALL_AT << step for step in range(8))
"""How many of the best rows are looked for. Filters need more than a page of them."""

QUERIES: Final = 1024
"""Queries that recall is measured with, if there are so many."""

_DEPTHS_HNSW: Final = DEPTHS[:4]
"""Its searches keep as many candidates as rows are wanted: for thousands it is the wrong kind."""
_DEEP: Final = 200
_DEEP_QUERIES: Final = 128
"""Enough for so many rows each."""
_CONFIDENCE: Final = 1.645
"""Standard errors below the mean of a sample: in 95 of 100 samples, the mean of all is above that."""
_ROUNDING: Final = 1e-9
_GENEROUS: Final = 1.5
_RERANKS: Final[Mapping[IndexKind, Sequence[int]]] = {
    "ivf_fp16": (0, 1, 2),
    # Scores that are shown come from whole vectors.
    "ivf_sq8": (1, 2, 4, 8, 16),
    "ivf_pq": (1, 2, 4, 8, 16, 32),
}
_LADDER: Final = (1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_LEAST_GAIN: Final = 0.0005

Recalls = npt.NDArray[np.float64]


def tune(
    filled: Filled, vectors: Vectors, queries: Vectors, report: IndexReport, target: float
) -> IndexReport:
    """The report, with the least effort that reaches the target at every depth, and the measured recall.

    Where nothing reaches it, as when codes are too coarse, it is the effort behind which nothing is gained.

    Args:
        filled: Holds n rows.
        vectors: float32 [n, dimension], the same rows.
        queries: float32 [m, dimension]; the first `QUERIES` are asked.
        report: Of the index; what is measured here is filled in.
        target: Mean recall.
    """
    if report.kind == "exact":
        return report
    return _Tuner(filled, vectors, queries[:QUERIES], report.kind, target).tune(report)


def exact_rows(vectors: Vectors, queries: Vectors, k: int) -> Rows:
    """The rows that exact search finds, by FAISS: int64 [m, k].

    Args:
        vectors: float32 [n, dimension].
        queries: float32 [m, dimension].
        k: Rows wanted a query, at most n.
    """
    _, rows = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(rows)


def recall_at_k(found: Rows, exact: Rows) -> float:
    """Mean share of the exact rows [n, k] that were found [n, k]."""
    return float(recalls_at_k(found, exact).mean())


def recalls_at_k(found: Rows, exact: Rows) -> Recalls:
    """The share of each query's exact rows [n, k] that were found [n, k]: float64 [n]."""
    hits = [len(np.intersect1d(f, e, assume_unique=True)) for f, e in zip(found, exact, strict=True)]
    recalls: Recalls = np.array(hits) / exact.shape[1]
    return recalls


def reaches(recalls: Recalls, target: float) -> bool:
    """Whether their mean reaches the target, with the sampling error taken off."""
    error = recalls.std() / np.sqrt(len(recalls))
    return bool(recalls.mean() - _CONFIDENCE * error >= target - _ROUNDING)


class _Tuner:
    def __init__(
        self, filled: Filled, vectors: Vectors, queries: Vectors, kind: IndexKind, target: float
    ) -> None:
        self._filled = filled
        self._vectors = vectors
        self._queries = queries
        self._target = target
        known = _DEPTHS_HNSW if kind == "hnsw" else DEPTHS
        self._depths = [depth for depth in known if depth <= len(vectors)] or [len(vectors)]
        self._wanted = self._exact_rows()

    def tune(self, report: IndexReport) -> IndexReport:
        """See `tune`."""
        report = replace(report, recall_queries=len(self._queries), efforts=self._first_efforts())
        if report.kind in _RERANKS:
            report = replace(report, rerank=self._rerank(report))
        efforts: list[tuple[int, int]] = []
        for depth in self._depths:
            effort = self._raised(report, depth)
            # Rounding may ask for less deeper down.
            efforts.append((depth, max(effort, efforts[-1][1] if efforts else 0)))
        report = replace(report, efforts=tuple(efforts), nprobe=efforts[0][1] if report.nlist else 0)
        return replace(report, recall_at_100=float(self._measured(report, self._depths[0]).mean()))

    def _exact_rows(self) -> dict[int, Rows]:
        """By depth, the exact rows of each query: int64 [m, depth]. Fewer queries are asked for many rows."""
        wanted: dict[int, Rows] = {}
        for group in (
            [depth for depth in self._depths if depth <= _DEEP],
            [depth for depth in self._depths if depth > _DEEP],
        ):
            if group:
                queries = self._queries_for(group[-1])
                rows = exact_rows(self._vectors, queries, group[-1])
                wanted |= {depth: rows[:, :depth] for depth in group}
        return wanted

    def _queries_for(self, depth: int) -> Vectors:
        return self._queries if depth <= _DEEP else self._queries[:_DEEP_QUERIES]

    def _first_efforts(self) -> tuple[tuple[int, int], ...]:
        """What searches begin with: what whole vectors need, where lists say it."""
        if self._filled.lists is None or self._filled.centroids is None:
            return tuple((depth, depth) for depth in self._depths)
        return self._by_lists(self._filled.lists, self._filled.centroids)

    def _by_lists(self, lists: Rows, centroids: Vectors) -> tuple[tuple[int, int], ...]:
        """nprobe without a search: a row is met if its list is among those that come first for a query."""
        nlist = len(centroids)
        _, ranked = faiss.knn(self._queries, centroids, nlist, metric=faiss.METRIC_INNER_PRODUCT)
        place = np.empty_like(ranked)
        np.put_along_axis(place, ranked, np.broadcast_to(np.arange(nlist), ranked.shape), axis=1)
        efforts = []
        for depth, exact in self._wanted.items():
            needed = np.take_along_axis(place[: len(exact)], lists[exact], axis=1)
            # Rows that each list adds, for each query.
            met = np.zeros((len(exact), nlist))
            np.add.at(met, (np.arange(len(exact))[:, None], needed), 1)
            recalls = np.cumsum(met, axis=1).T / depth
            enough = next((n for n, each in enumerate(recalls, 1) if self._reaches(each)), nlist)
            efforts.append((depth, enough))
        return tuple(efforts)

    def _rerank(self, report: IndexReport) -> int:
        """The fewest candidates of which the codes lose no more than is allowed, at any depth."""
        # In more lists than needed, so that what is lost is lost by the codes.
        generous = tuple((depth, int(_GENEROUS * effort) + 1) for depth, effort in report.efforts)
        for rerank in _RERANKS[report.kind]:
            tried = replace(report, rerank=rerank, efforts=generous)
            if all(self._reaches(self._measured(tried, depth)) for depth in self._depths):
                break
        return rerank

    def _raised(self, report: IndexReport, depth: int) -> int:
        """The effort for this depth, raised until the target is reached or nothing more is gained."""
        start, before = report.effort(depth), -1.0
        # Rounding may give two lists or two rows another order than the exact search saw: one list more.
        ladder = [start, start + 1, *(int(start * factor) for factor in _LADDER)]
        for effort in sorted({min(own, report.nlist or own) for own in ladder}):
            recalls = self._measured(replace(report, efforts=((depth, effort),)), depth)
            recall = float(recalls.mean())
            if self._reaches(recalls) or (effort > start + 1 and recall - before < _LEAST_GAIN):
                return effort
            before = recall
        return effort

    def _measured(self, report: IndexReport, depth: int) -> Recalls:
        index = FaissIndex(self._filled.index, report, self._vectors)
        return recalls_at_k(index.search(self._queries_for(depth), depth)[1], self._wanted[depth])

    def _reaches(self, recalls: Recalls) -> bool:
        return reaches(recalls, self._target)
