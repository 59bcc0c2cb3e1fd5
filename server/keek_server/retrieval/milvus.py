"""The main index in Milvus, for corpora that one machine's memory does not hold."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from keek_server.retrieval.index import (
    RECALL_AT,
    SCORED_ALONE,
    IndexReport,
    Mask,
    Rows,
    Scores,
    Vectors,
    best,
    score,
    whole_scores,
)
from keek_server.retrieval.milvus_store import TOPK_MOST, Milvus

_ROOM: Final = 1.25
_ROOM_LEAST: Final = 16
_DEEPER: Final = 4


class MilvusIndex:
    """A release's collection, and its mapped vectors.

    Milvus finds candidates; where its index keeps codes, they are scored again by the whole vectors. What
    it cannot find, because it gives no more than TOPK_MOST rows a query, is found by exact search in the
    vectors, which reads all of them.
    """

    def __init__(self, milvus: Milvus, collection: str, report: IndexReport, vectors: Vectors) -> None:
        """
        Args:
            milvus: Has it.
            collection: Name of a loaded collection, whose rows are those of `vectors`.
            report: How it was built.
            vectors: float32 [rows, dimension].
        """
        self._milvus = milvus
        self._collection = collection
        self._report = report
        self._vectors = vectors

    @classmethod
    def open(cls, milvus: Milvus, release_id: str, report: IndexReport, vectors: Vectors) -> "MilvusIndex":
        """The index of a release that is published.

        Raises:
            SetupError: When Milvus does not have its collection, or not all of it.
            UnavailableError: When Milvus does not answer.
        """
        return cls(milvus, milvus.open(release_id, len(vectors)), report, vectors)

    def ensure_loaded(self) -> None:
        """Has Milvus load the collection again if it does not have it loaded any more.

        Raises:
            UnavailableError: When Milvus is gone, late, or cannot.
        """
        self._milvus.load(self._collection)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """See `Index.search`.

        Raises:
            UnavailableError: When Milvus is gone, or late.
        """
        count = len(self._vectors) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, count)
        scores = np.full((len(queries), max(k, 0)), -np.inf, np.float32)
        rows = np.full(scores.shape, -1, np.int64)
        # A query that is not finite finds nothing; Milvus would refuse all that come with it.
        finite = np.flatnonzero(np.isfinite(queries).all(axis=1))
        if k > 0 and len(finite):
            scores[finite], rows[finite] = self._search(queries[finite], k, count, allowed)
        return scores, rows

    def _search(self, queries: Vectors, k: int, count: int, allowed: Mask | None) -> tuple[Scores, Rows]:
        if allowed is None:
            scores, rows = self._found(queries, k)
        elif count <= SCORED_ALONE:
            return score(queries, self._vectors, np.flatnonzero(allowed), k)
        else:
            scores, rows = self._found_allowed(queries, k, allowed, count / len(allowed))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short):
            own = None if allowed is None else np.flatnonzero(allowed)
            scores[short], rows[short] = score(queries[short], self._vectors, own, k)
        return scores, rows

    def _found(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """Without a filter; of more than TOPK_MOST, none."""
        if k > TOPK_MOST:
            return _nothing(len(queries), k)
        scores, rows = self.candidates(queries, k, self._report.effort(k))
        short = np.flatnonzero(rows[:, -1] < 0)
        if len(short) and self._report.nlist:
            scores[short], rows[short] = self.candidates(queries[short], k, self._report.nlist)
        return scores, rows

    def _found_allowed(self, queries: Vectors, k: int, allowed: Mask, share: float) -> tuple[Scores, Rows]:
        """The allowed ones among the best; deeper for queries near which few are, as deep as Milvus goes."""
        scores, rows = _nothing(len(queries), k)
        left = np.arange(len(queries) if k <= TOPK_MOST else 0)
        for depth in _depths(math.ceil(_ROOM * k / share) + _ROOM_LEAST):
            if not len(left):
                break
            deep_scores, deep_rows = self._found(queries[left], min(depth, len(allowed)))
            met = (deep_rows >= 0) & allowed[deep_rows]
            deep_scores, deep_rows = np.where(met, deep_scores, -np.inf), np.where(met, deep_rows, -1)
            scores[left], rows[left] = best(deep_scores, deep_rows, k)
            left = left[rows[left, -1] < 0]
        return scores, rows

    def candidates(self, queries: Vectors, k: int, nprobe: int) -> tuple[Scores, Rows]:
        """What so many lists a segment hold, scored as `search` does; fewer than k where they hold fewer.

        Args:
            queries: float32 [n, dimension], all finite.
            k: 1 to TOPK_MOST.
            nprobe: 0 for an index without lists.
        """
        rerank = self._report.rerank
        width = min(max(k, RECALL_AT) * rerank, TOPK_MOST, len(self._vectors)) if rerank else k
        scores, rows = self._milvus.search(self._collection, queries, width, nprobe)
        if rerank:
            scores = whole_scores(queries, self._vectors, rows)
        return best(scores, rows, k)


def _depths(depth: int) -> Iterator[int]:
    while depth < TOPK_MOST:
        yield depth
        depth *= _DEEPER
    yield TOPK_MOST


def _nothing(count: int, k: int) -> tuple[Scores, Rows]:
    return np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
