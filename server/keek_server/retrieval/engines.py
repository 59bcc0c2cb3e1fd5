"""The kinds of main index: how each is filled, and how large it gets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np

from keek_server.retrieval.clustering import Grouped, assign, train_centroids
from keek_server.retrieval.index import Rows, Vectors
from keek_server.retrieval.kinds import IndexKind, MainKind

_TRAINING_POINTS_PER_LIST = 64
# Of a corpus of a million, as good as ten iterations over all 4000 lists, in a fraction of the time.
_TRAINING_CONSIDERED = (128, 128, 128, 128, 256, 256, 256, 512, 512, 512)
_CONSIDERED_LEAST = 512
_CHUNK = 262_144
_QUANTISER_POINTS = 65_536
_CODE_BITS: Final = 8
_CODES: Final = 1 << _CODE_BITS
_HNSW_LINKS: Final = 32
_HNSW_CONSTRUCTION: Final = 200
_ID_BYTES: Final = 8
_LINK_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Filled:
    """An index that holds a corpus, not tuned yet."""

    index: Any
    """Of FAISS."""
    lists: Rows | None = None
    """int64 [n], the list of each row; None of an index without lists."""
    centroids: Vectors | None = None
    """float32 [nlist, dimension], which lists are ranked by: by their dot products with a query."""


def fill(kind: MainKind, vectors: Vectors) -> Filled:
    """Builds an index over all rows, with all cores.

    Args:
        kind: What is built.
        vectors: float32 [n, dimension], n > 0.
    """
    if kind == "exact":
        return Filled(_added(faiss.IndexFlatIP(vectors.shape[1]), vectors))
    if kind == "hnsw":
        return Filled(_fill_graph(vectors))
    return _fill_lists(kind, vectors)


def bytes_per_vector(kind: IndexKind, dimension: int) -> int:
    """What a row takes in memory, about."""
    return {
        "exact": 4 * dimension,
        "exact_fp16": 2 * dimension,
        "ivf_flat": 4 * dimension + _ID_BYTES,
        "ivf_fp16": 2 * dimension + _ID_BYTES,
        "ivf_sq8": dimension + _ID_BYTES,
        "ivf_pq": _pieces(dimension) + _ID_BYTES,
        # Twice the links in the lowest layer.
        "hnsw": 4 * (dimension + 1) + 2 * _LINK_BYTES * _HNSW_LINKS,
    }[kind]


def choose(count: int, dimension: int, *, exact_below: int, memory_bytes: int | None) -> MainKind:
    """The fastest kind that fits.

    Args:
        count: Rows.
        dimension: Of a row.
        exact_below: So few are scored one by one.
        memory_bytes: What the index may take; None for any. What fits in no form gets the smallest.
    """
    if count < exact_below:
        return "exact"
    # Half as many bytes as `ivf_flat` are read in two thirds of the time, and lose next to nothing.
    fitting: tuple[MainKind, ...] = ("ivf_fp16", "ivf_sq8")
    for kind in fitting:
        if memory_bytes is None or count * bytes_per_vector(kind, dimension) <= memory_bytes:
            return kind
    return "ivf_pq"


def _ivf_flat(quantizer: faiss.Index, dimension: int, nlist: int) -> faiss.IndexIVF:
    return faiss.IndexIVFFlat(quantizer, dimension, nlist, faiss.METRIC_INNER_PRODUCT)


def _ivf_fp16(quantizer: faiss.Index, dimension: int, nlist: int) -> faiss.IndexIVF:
    return _ivf_scalar(quantizer, dimension, nlist, faiss.ScalarQuantizer.QT_fp16)


def _ivf_sq8(quantizer: faiss.Index, dimension: int, nlist: int) -> faiss.IndexIVF:
    return _ivf_scalar(quantizer, dimension, nlist, faiss.ScalarQuantizer.QT_8bit)


def _ivf_scalar(quantizer: faiss.Index, dimension: int, nlist: int, values: int) -> faiss.IndexIVF:
    # Rows as they are, not what they differ from a centroid by: it would cost a sum more a row.
    return faiss.IndexIVFScalarQuantizer(
        quantizer, dimension, nlist, values, faiss.METRIC_INNER_PRODUCT, False
    )


def _ivf_pq(quantizer: faiss.Index, dimension: int, nlist: int) -> faiss.IndexIVF:
    return faiss.IndexIVFPQ(
        quantizer, dimension, nlist, _pieces(dimension), _CODE_BITS, faiss.METRIC_INNER_PRODUCT
    )


_IVF: Final[dict[MainKind, Callable[[faiss.Index, int, int], faiss.IndexIVF]]] = {
    "ivf_flat": _ivf_flat,
    "ivf_fp16": _ivf_fp16,
    "ivf_sq8": _ivf_sq8,
    "ivf_pq": _ivf_pq,
}


def _pieces(dimension: int) -> int:
    """Of a product quantiser, a byte each: half as many as there are dimensions, if they can be halved."""
    return dimension // 2 if dimension % 2 == 0 else dimension


def _fill_lists(kind: MainKind, vectors: Vectors) -> Filled:
    count, dimension = vectors.shape
    # 4 * sqrt(n) lists balance the cost of choosing lists against that of scanning them.
    nlist = min(count, int(4 * np.sqrt(count)))
    rng = np.random.default_rng(0)
    sample = rng.choice(count, min(count, _TRAINING_POINTS_PER_LIST * nlist), replace=False)
    centroids, cells = train_centroids(vectors[np.sort(sample)], nlist, _TRAINING_CONSIDERED)
    points = vectors[np.sort(rng.choice(sample, min(len(sample), _QUANTISER_POINTS), replace=False))]
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(centroids)
    ivf = _IVF[kind](quantizer, dimension, nlist)
    # Training forgives a vector in a list that is only nearly the nearest. Once it is in the
    # index it has to be looked for there, so more lists are considered.
    considered = max(_CONSIDERED_LEAST, nlist // 5)
    _train_codes(ivf, points, centroids, cells, considered)
    lists = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        part = np.ascontiguousarray(vectors[start : start + _CHUNK], np.float32)
        own = assign(Grouped.by_cell(part, cells), cells, centroids, considered)
        ids = np.arange(start, start + len(part))
        ivf.add_core(len(part), faiss.swig_ptr(part), faiss.swig_ptr(ids), faiss.swig_ptr(own))
        lists[start : start + _CHUNK] = own
    return Filled(ivf, lists, centroids)


def _fill_graph(vectors: Vectors) -> Any:
    """HNSW by distance, in one dimension more: links by inner product lead to the long vectors alone.

    Each vector x gets sqrt(L^2 - |x|^2) for the longest length L, and a query gets 0: what is nearest has the
    largest inner product then (Bachrach et al., "Speeding Up the Xbox Recommender System Using a Euclidean
    Transformation for Inner-Product Spaces", 2014).
    """
    squares = np.einsum("nd,nd->n", vectors, vectors)
    missing = np.sqrt(squares.max() - squares)
    hnsw = faiss.IndexHNSWFlat(vectors.shape[1] + 1, _HNSW_LINKS, faiss.METRIC_L2)
    hnsw.hnsw.efConstruction = _HNSW_CONSTRUCTION
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        hnsw.add(np.column_stack([vectors[part], missing[part]]).astype(np.float32))
    return hnsw


def _train_codes(
    ivf: faiss.IndexIVF, points: Vectors, centroids: Vectors, cells: Vectors, considered: int
) -> None:
    """Trains what stands for a vector within its list; the lists themselves are trained."""
    if len(points) < _CODES:
        points = np.resize(points, (_CODES, points.shape[1]))
    own = assign(Grouped.by_cell(points, cells), cells, centroids, considered)
    if ivf.by_residual:
        points = points - centroids[own]
    ivf.train_encoder(len(points), faiss.swig_ptr(points), faiss.swig_ptr(own))
    ivf.is_trained = True


def _added(index: Any, vectors: Vectors) -> Any:
    for start in range(0, len(vectors), _CHUNK):
        index.add(np.ascontiguousarray(vectors[start : start + _CHUNK], np.float32))
    return index
