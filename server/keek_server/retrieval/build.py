"""Building the main index: its kind by the size of the corpus, nprobe by measured recall."""

import time

import faiss
import numpy as np

from keek_server.retrieval.index import RECALL_AT, FaissIndex, IndexReport, Rows, Vectors, ivf_parameters

_TRAINING_POINTS_PER_LIST = 64


def build_index(
    vectors: Vectors, queries: Vectors, *, exact_below: int, recall_target: float
) -> tuple[FaissIndex, IndexReport]:
    """Builds the index over a corpus.

    Args:
        vectors: float32 [n, dimension], the video vectors by row.
        queries: float32 [m, dimension], user vectors that recall is measured on.
        exact_below: Corpora smaller than this get exact search.
        recall_target: Mean recall@100 that nprobe is raised to.
    """
    started = time.perf_counter()
    if len(vectors) < exact_below:
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        report = IndexReport("exact", len(vectors), 0, 0, 1.0, len(queries), time.perf_counter() - started)
        return FaissIndex(flat, 0), report
    ivf = _train_ivf(vectors)
    nprobe, recall = _tune(ivf, queries, _exact(vectors, queries), recall_target)
    report = IndexReport(
        "ivf_flat", len(vectors), ivf.nlist, nprobe, recall, len(queries), time.perf_counter() - started
    )
    return FaissIndex(ivf, nprobe), report


def recall_at_k(found: Rows, exact: Rows) -> float:
    """Mean share of the exact rows [n, k] that were found [n, k]."""
    hits = [len(np.intersect1d(f, e, assume_unique=True)) for f, e in zip(found, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def _train_ivf(vectors: Vectors) -> faiss.IndexIVFFlat:
    count, dimension = vectors.shape
    # 4 * sqrt(n) lists balance the cost of choosing lists against that of scanning them.
    nlist = int(4 * np.sqrt(count))
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, nlist, faiss.METRIC_INNER_PRODUCT)
    ivf.cp.max_points_per_centroid = _TRAINING_POINTS_PER_LIST
    ivf.train(vectors)
    ivf.add(vectors)
    return ivf


def _exact(vectors: Vectors, queries: Vectors) -> Rows:
    _, rows = faiss.knn(queries, vectors, min(RECALL_AT, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(rows)


def _tune(ivf: faiss.IndexIVFFlat, queries: Vectors, exact: Rows, target: float) -> tuple[int, float]:
    """The smallest nprobe that reaches the target, and its recall: doubled up to it, then bisected."""

    def recall(nprobe: int) -> float:
        _, found = ivf.search(queries, exact.shape[1], params=ivf_parameters(nprobe))
        return recall_at_k(found, exact)

    low, high = 0, 1
    while high < ivf.nlist and recall(high) < target:
        low, high = high, min(2 * high, ivf.nlist)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= target else (middle, high)
    return high, recall(high)
