"""The main index: immutable, built once for a release, searched by maximum inner product."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from keek_server.retrieval.kinds import IndexKind

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RECALL_AT: Final = 100
"""The k of the recall that an index is tuned to."""

SCORED_ALONE: Final = 65_536
"""Of so few rows that may be found, all are scored: nothing else is sure to find what lies far away."""

Efforts = tuple[tuple[int, int], ...]
"""Pairs of a depth (how many of the best rows are wanted) and the effort that finds them, both ascending."""


class Index(Protocol):
    """Finds the rows whose vectors have the largest dot product with a query."""

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """
        Args:
            queries: float32 [n, dimension].
            k: Rows wanted a query.
            allowed: bool [rows], which may be found; all by default.

        Returns:
            Scores float32 [n, at most k], descending, and rows int64 beside them; where a query finds
            less, its last rows are -1. Less than k are found only where there are no more.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexReport:
    """How an index was built, and what its recall was measured to be."""

    kind: IndexKind
    videos: int
    nlist: int
    """Lists of an IVF index; 0 of others."""
    nprobe: int
    """Lists that are searched for the first `RECALL_AT`; 0 of others."""
    recall_at_100: float
    """Against exact search, over `recall_queries` queries."""
    recall_queries: int
    build_s: float
    efforts: Efforts = ()
    """What it takes to find more: nprobe of an IVF index, efSearch of HNSW; none of an exact one."""
    rerank: int = 0
    """Candidates per row wanted that are scored again by their whole vectors; 0: none."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)

    def effort(self, depth: float) -> int:
        """The effort that finds the best `depth` rows; 0 where the index takes none.

        That of the next depth that was measured, beyond the last in proportion.
        """
        known = self.efforts or (((RECALL_AT, self.nprobe),) if self.nprobe else ())
        if not known:
            return 0
        deepest, most = known[-1]
        found = next((effort for own, effort in known if depth <= own), math.ceil(most * depth / deepest))
        # HNSW keeps as many candidates as it finds rows.
        return min(found, self.nlist) if self.nlist else max(found, math.ceil(depth))


class FaissIndex:
    """A FAISS index. Searches release the GIL and use the caller's thread alone."""

    def __init__(self, index: Any, report: IndexReport, vectors: Vectors | None = None) -> None:
        """
        Args:
            index: Of FAISS, by inner product; or by distance, in one dimension more, which is 0 in queries.
            report: How it was built.
            vectors: float32 [rows, dimension], what it was built of; needed where candidates are scored
                again, as those of an index by distance always are. With them, few rows that may be found are
                scored without the index.
        """
        self._index = index
        self.report = report
        self.vectors = vectors
        self._by_distance = bool(index.metric_type == faiss.METRIC_L2)
        self._parameters: dict[int, Any] = {}
        """Of calls without a mask, by effort: making them takes as long as some searches."""

    def __len__(self) -> int:
        """Rows that it holds."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Of its vectors."""
        return int(self._index.d) - self._by_distance

    @classmethod
    def open(cls, path: Path, report: IndexReport, vectors: Vectors | None = None) -> "FaissIndex":
        """Maps an index file: its pages are shared between processes and read when needed."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        return cls(index, report, vectors)

    @classmethod
    def empty(cls, dimension: int) -> "FaissIndex":
        """An index that finds nothing."""
        return cls(faiss.IndexFlatIP(dimension), IndexReport("exact", 0, 0, 0, 1.0, 0, 0.0))

    def at(self, report: IndexReport) -> "FaissIndex":
        """The same rows, searched as another report says."""
        return FaissIndex(self._index, report, self.vectors)

    def save(self, path: Path) -> None:
        """Writes the index file."""
        faiss.write_index(self._index, str(path))

    def copied(self, copy: Callable[[Any], Any], **changes: Any) -> "FaissIndex":
        """The same rows in another index.

        Args:
            copy: Makes FAISS's index of that of this one.
            changes: What is different in its report.
        """
        return FaissIndex(copy(self._index), replace(self.report, **changes), self.vectors)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """See `Index.search`."""
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, count)
        if k <= 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        depth = float(k)
        if allowed is not None:
            if self.vectors is not None and count <= SCORED_ALONE:
                return score(queries, self.vectors, np.flatnonzero(allowed), k)
            # Where a share of the rows may be found, the k best of them are among so many.
            depth = k * len(allowed) / count
        scores, found = self._search(queries, k, self.report.effort(depth), allowed)
        short = found[:, -1] < 0
        if short.any():
            # A query that is not finite finds nothing, however much is searched.
            for place in np.flatnonzero(short & np.isfinite(queries).all(axis=1)):
                scores[place], found[place] = self._search_all(queries[place : place + 1], k, allowed)
        return scores, found

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """Searches all rows once, with the effort for this depth: where a query finds less than k, its last
        rows are -1, whatever there is.

        Args:
            queries: float32 [n, dimension].
            k: At least 1, at most as many as there are rows.
        """
        return self._search(queries, k, self.report.effort(k))

    def width(self, k: int) -> int:
        """How many rows FAISS is asked for when k are wanted."""
        if self.vectors is None or not self.report.rerank:
            return k
        return min(max(k, RECALL_AT) * self.report.rerank, len(self))

    @property
    def _reranks(self) -> bool:
        return self._by_distance or (self.report.rerank > 0 and self.vectors is not None)

    def _search_all(self, query: Vectors, k: int, allowed: Mask | None) -> tuple[Scores, Rows]:
        """For a query to which the chosen lists, or the links, did not offer enough."""
        if self.report.nlist or self.vectors is None:
            return self._search(query, k, self.report.nlist, allowed)
        return score(query, self.vectors, None if allowed is None else np.flatnonzero(allowed), k)

    def _search(
        self, queries: Vectors, k: int, effort: int, allowed: Mask | None = None
    ) -> tuple[Scores, Rows]:
        if allowed is not None:
            parameters = search_parameters(self.report, effort, allowed)
        elif (parameters := self._parameters.get(effort)) is None:
            parameters = self._parameters[effort] = search_parameters(self.report, effort)
        asked = np.pad(queries, ((0, 0), (0, 1))) if self._by_distance else queries
        scores, rows = self._index.search(asked, self.width(k), params=parameters)
        return self.rescored(queries, rows, k) if self._reranks else (scores, rows)

    def rescored(self, queries: Vectors, rows: Rows, k: int) -> tuple[Scores, Rows]:
        """The best k of candidates by their whole vectors, which must be there.

        Args:
            queries: float32 [n, dimension].
            rows: int64 [n, m], m >= k; -1 for none.
            k: At least 1.
        """
        assert self.vectors is not None
        return best(whole_scores(queries, self.vectors, rows), rows, k)


def whole_scores(queries: Vectors, vectors: Vectors, rows: Rows) -> Scores:
    """Dot products with the whole vectors of candidates: float32 [n, m], -inf where a row is -1.

    Args:
        queries: float32 [n, dimension].
        vectors: float32 [rows, dimension].
        rows: int64 [n, m].
    """
    scores: Scores = np.einsum("nd,nkd->nk", queries, vectors[np.maximum(rows, 0)])
    scores[rows < 0] = -np.inf
    return scores


def score(queries: Vectors, vectors: Vectors, rows: Rows | None, k: int) -> tuple[Scores, Rows]:
    """Exact search: the k best of some rows, [n, k] each, as `best` gives them.

    Args:
        queries: float32 [n, dimension].
        vectors: float32 [m, dimension].
        rows: int64, ascending, at least k of the m; all by default.
        k: At least 1.
    """
    count = len(vectors) if rows is None else len(rows)
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    # Part by part: the scores of all rows at once may not fit.
    for start in range(0, count, SCORED_ALONE):
        stop = min(start + SCORED_ALONE, count)
        own = np.arange(start, stop) if rows is None else rows[start:stop]
        part: Scores = queries @ (vectors[start:stop] if rows is None else vectors[own]).T
        scores = np.concatenate([scores, part], axis=1)
        found = np.concatenate([found, np.broadcast_to(own, part.shape)], axis=1)
        scores, found = best(scores, found, min(k, stop))
    return scores, found


def best(scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
    """The k rows with the largest scores, [n, k], descending; equal ones in the order of rows.

    Args:
        scores: float32 [n, m], m >= k.
        rows: int64 [n, m].
        k: At least 1.
    """
    if scores.shape[1] > k:
        kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, rows = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def search_parameters(report: IndexReport, effort: int, allowed: Mask | None = None) -> Any:
    """Parameters of one call: the index itself stays as it is. None where the index needs none.

    Args:
        report: Of the index.
        effort: See `IndexReport.effort`.
        allowed: See `Index.search`.
    """
    given: dict[str, Any] = {}
    if allowed is not None:
        given["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[call-arg, arg-type]
    if report.nlist:
        given["nprobe"] = effort
        return faiss.SearchParametersIVF(**given)
    if report.kind == "hnsw":
        given["efSearch"] = effort
        return faiss.SearchParametersHNSW(**given)  # type: ignore[attr-defined]
    return faiss.SearchParameters(**given) if given else None
