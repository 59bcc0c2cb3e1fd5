"""Building the main index: its kind by the size of the corpus, nprobe by measured recall."""

import time

import faiss
import numpy as np

from keek_server.retrieval.clustering import Grouped, assign, train_centroids
from keek_server.retrieval.index import RECALL_AT, FaissIndex, IndexReport, Rows, Vectors, search_parameters

_TRAINING_POINTS_PER_LIST = 64
# Of a corpus of a million, as good as ten iterations over all 4000 lists, in a fraction of the time.
_TRAINING_CONSIDERED = (128, 128, 128, 128, 256, 256, 256, 512, 512, 512)
_CONSIDERED_LEAST = 512
_CHUNK = 262_144


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
    ivf, lists = _build_ivf(vectors)
    nprobe, recall = _tune(ivf, lists, queries, _exact(vectors, queries), recall_target)
    report = IndexReport(
        "ivf_flat", len(vectors), ivf.nlist, nprobe, recall, len(queries), time.perf_counter() - started
    )
    return FaissIndex(ivf, nprobe), report


def recall_at_k(found: Rows, exact: Rows) -> float:
    """Mean share of the exact rows [n, k] that were found [n, k]."""
    hits = [len(np.intersect1d(f, e, assume_unique=True)) for f, e in zip(found, exact, strict=True)]
    return float(np.mean(hits) / exact.shape[1])


def _build_ivf(vectors: Vectors) -> tuple[faiss.IndexIVFFlat, Rows]:
    """The filled index, and the list of each row."""
    count, dimension = vectors.shape
    # 4 * sqrt(n) lists balance the cost of choosing lists against that of scanning them.
    nlist = min(count, int(4 * np.sqrt(count)))
    sample = np.random.default_rng(0).choice(
        count, min(count, _TRAINING_POINTS_PER_LIST * nlist), replace=False
    )
    centroids, cells = train_centroids(vectors[np.sort(sample)], nlist, _TRAINING_CONSIDERED)
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(centroids)
    ivf = faiss.IndexIVFFlat(quantizer, dimension, nlist, faiss.METRIC_INNER_PRODUCT)
    ivf.is_trained = True
    lists = np.empty(count, np.int64)
    # Training forgives a vector in a list that is only nearly the nearest. Once it is in the
    # index it has to be looked for there, so more lists are considered.
    considered = max(_CONSIDERED_LEAST, nlist // 5)
    for start in range(0, count, _CHUNK):
        part = np.ascontiguousarray(vectors[start : start + _CHUNK], np.float32)
        own = assign(Grouped.by_cell(part, cells), cells, centroids, considered)
        ids = np.arange(start, start + len(part))
        ivf.add_core(len(part), faiss.swig_ptr(part), faiss.swig_ptr(ids), faiss.swig_ptr(own))
        lists[start : start + _CHUNK] = own
    return ivf, lists


def _exact(vectors: Vectors, queries: Vectors) -> Rows:
    _, rows = faiss.knn(queries, vectors, min(RECALL_AT, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(rows)


def _tune(
    ivf: faiss.IndexIVFFlat, lists: Rows, queries: Vectors, exact: Rows, target: float
) -> tuple[int, float]:
    """The smallest nprobe that reaches the target, and its recall.

    A list is searched exactly, so an exact row is found if its list is among the nprobe that
    come first for the query. Where its list comes says which nprobe finds it, without a search.
    """
    _, ranked = ivf.quantizer.search(queries, ivf.nlist)
    place = np.empty_like(ranked)
    np.put_along_axis(place, ranked, np.broadcast_to(np.arange(ivf.nlist), ranked.shape), axis=1)
    needed = np.sort(np.take_along_axis(place, lists[exact], axis=1), axis=None) + 1
    nprobe = int(needed[min(len(needed), int(np.ceil(target * len(needed)))) - 1])
    while True:
        _, found = ivf.search(queries, exact.shape[1], params=search_parameters(nprobe))
        recall = recall_at_k(found, exact)
        # Rounding may give two lists or two rows another order than the exact search saw.
        if recall >= target or nprobe == ivf.nlist:
            return nprobe, recall
        nprobe += 1
