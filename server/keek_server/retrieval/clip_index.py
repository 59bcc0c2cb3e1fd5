"""The index over clip vectors: eight times as wide as the towers' vectors, so kept smaller."""

import time

import faiss
import numpy as np

from keek_server.retrieval.index import (
    RECALL_AT,
    FaissIndex,
    IndexReport,
    Mask,
    Vectors,
)
from keek_server.retrieval.tuning import recall_at_k
from keek_server.towers.features import Float16Array

_QUERIES = 256
_CHUNK = 65_536
_TRAINING_POINTS_PER_LIST = 40
_ITERATIONS = 6
_LEAST_GAIN = 0.001


def build_clip_index(
    vectors: Float16Array, has_clip: Mask, *, exact_below: int, recall_target: float
) -> tuple[FaissIndex, IndexReport]:
    """Builds the index over the clip vectors of a corpus; rows are those of the corpus.

    Below `exact_below` videos they are kept as they are, in float16; above, in 8 bits a value, in lists of
    which nprobe are searched.

    Args:
        vectors: float16 [n, CLIP_DIMENSION], of length 1.
        has_clip: bool [n], which videos have one, at least one of them.
        exact_below: Fewer vectors than this get exact search.
        recall_target: Mean recall@100 that nprobe is raised to, between videos.
    """
    started = time.perf_counter()
    rows = np.flatnonzero(has_clip)
    rng = np.random.default_rng(0)
    queries = vectors[rng.choice(rows, min(_QUERIES, len(rows)), replace=False)].astype(np.float32)
    if len(rows) < exact_below:
        index = faiss.IndexIDMap(_flat(vectors.shape[1]))
        _add(index, vectors, rows)
        report = IndexReport("exact_fp16", len(rows), 0, 0, 1.0, len(queries), time.perf_counter() - started)
        return FaissIndex(index, report), report
    ivf = _trained(vectors, rows, rng)
    _add(ivf, vectors, rows)
    nprobe, recall = _tune(ivf, vectors, rows, queries, recall_target)
    report = IndexReport(
        "ivf_sq8", len(rows), ivf.nlist, nprobe, recall, len(queries), time.perf_counter() - started
    )
    return FaissIndex(ivf, report), report


def _flat(dimension: int) -> faiss.IndexScalarQuantizer:
    return faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _trained(
    vectors: Float16Array, rows: np.ndarray, rng: np.random.Generator
) -> faiss.IndexIVFScalarQuantizer:
    dimension = vectors.shape[1]
    nlist = max(1, int(np.sqrt(len(rows))))
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension),
        dimension,
        nlist,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    ivf.cp.niter, ivf.cp.spherical = _ITERATIONS, True
    sample = rng.choice(rows, min(len(rows), _TRAINING_POINTS_PER_LIST * nlist), replace=False)
    ivf.train(vectors[np.sort(sample)].astype(np.float32))
    return ivf


def _add(index: faiss.Index, vectors: Float16Array, rows: np.ndarray) -> None:
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        index.add_with_ids(vectors[part].astype(np.float32), part)


def _tune(
    ivf: faiss.IndexIVFScalarQuantizer,
    vectors: Float16Array,
    rows: np.ndarray,
    queries: Vectors,
    target: float,
) -> tuple[int, float]:
    """nprobe, doubled until it reaches the target or gains no more, and its recall."""
    exact = _exact(vectors, rows, queries)
    nprobe, recall = 0, 0.0
    while nprobe < ivf.nlist:
        before, nprobe = recall, min(max(1, 2 * nprobe), ivf.nlist)
        ivf.nprobe = nprobe
        _, found = ivf.search(queries, exact.shape[1])
        recall = recall_at_k(found, exact)
        # What the 8 bits cost, no number of lists brings back.
        if recall >= target or recall - before < _LEAST_GAIN:
            break
    return nprobe, recall


def _exact(vectors: Float16Array, rows: np.ndarray, queries: Vectors) -> np.ndarray:
    """The best rows of each query, a chunk at a time: all vectors in float32 would be twice as large."""
    best = faiss.ResultHeap(len(queries), min(RECALL_AT, len(rows)), keep_max=True)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        scores, found = faiss.knn(
            queries, vectors[part].astype(np.float32), best.k, metric=faiss.METRIC_INNER_PRODUCT
        )
        best.add_result(scores, part[found])
    best.finalize()
    return np.asarray(best.I)
