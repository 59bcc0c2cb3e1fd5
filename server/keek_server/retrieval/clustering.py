"""Spherical k-means for many lists: each vector is compared with the centroids near it alone.

Comparing every vector with every centroid costs n * k dot products an iteration, which is
nearly all of an index's build. Here a few cells, found by plain k-means, say which
centroids can be the nearest at all.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from keek_server.retrieval.index import Rows, Vectors

_CELLS_MOST = 256
_POINTS_PER_CELL = 64
_CELL_ITERATIONS = 8
_CENTROIDS_PER_CELL = 8
_SPLIT_NOISE = 0.01


@dataclass(frozen=True, slots=True)
class Grouped:
    """Vectors and the cell of each."""

    vectors: Vectors
    """float32 [n, dimension]."""
    order: Rows
    """int64 [n]: rows, those of one cell after the other."""
    bounds: Rows
    """int64 [cells + 1], where in `order` each cell begins."""

    @classmethod
    def by_cell(cls, vectors: Vectors, cells: Vectors) -> "Grouped":
        """Groups vectors by the nearest of the cells, float32 [cells, dimension]."""
        nearest = nearest_of(vectors, cells)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(nearest, minlength=len(cells)))])
        return cls(vectors, np.argsort(nearest, kind="stable"), bounds)

    def __iter__(self) -> Iterator[Rows]:
        """The rows of each cell."""
        return iter(np.split(self.order, self.bounds[1:-1]))


def train_centroids(vectors: Vectors, k: int, considered: Sequence[int]) -> tuple[Vectors, Vectors]:
    """Clusters by angle.

    Args:
        vectors: float32 [n, dimension], n >= k.
        k: Centroids.
        considered: Centroids that a vector is compared with, in each iteration of Lloyd's
            algorithm. The last ones need more, since by then a centroid moves little.

    Returns:
        The centroids, float32 [k, dimension] of length 1, and the cells, float32
        [cells, dimension], that `assign` finds them by.
    """
    rng = np.random.default_rng(0)
    cells = _train_cells(vectors, k, rng)
    grouped = Grouped.by_cell(vectors, cells)
    centroids = _normalised(vectors[rng.choice(len(vectors), k, replace=False)])
    for number in considered:
        centroids = _moved(vectors, assign(grouped, cells, centroids, number), centroids, rng)
    return centroids, cells


def assign(grouped: Grouped, cells: Vectors, centroids: Vectors, considered: int) -> Rows:
    """The nearest centroid of each vector, among the `considered` ones nearest to its cell: int64 [n]."""
    considered = min(considered, len(centroids))
    near = faiss.knn(cells, centroids, considered, metric=faiss.METRIC_INNER_PRODUCT)[1]
    assigned = np.empty(len(grouped.vectors), np.int64)

    def assign_cell(rows: Rows, candidates: Rows) -> None:
        if len(rows):
            assigned[rows] = candidates[nearest_of(grouped.vectors[rows], centroids[candidates])]

    # A thread a cell, not FAISS's threads within one: each has too little work to wait for others.
    threads = faiss.omp_get_max_threads()
    with ThreadPoolExecutor(threads, initializer=lambda: faiss.omp_set_num_threads(1)) as pool:
        list(pool.map(assign_cell, grouped, near))
    return assigned


def nearest_of(vectors: Vectors, centroids: Vectors) -> Rows:
    """Which centroid has the largest dot product with each vector: int64 [n]."""
    _, rows = faiss.knn(vectors, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)
    nearest: Rows = rows[:, 0]
    return nearest


def _train_cells(vectors: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    count = max(1, min(_CELLS_MOST, k // _CENTROIDS_PER_CELL))
    sample = vectors[rng.choice(len(vectors), min(len(vectors), _POINTS_PER_CELL * count), replace=False)]
    cells = _normalised(sample[:count])
    for _ in range(_CELL_ITERATIONS):
        cells = _moved(sample, nearest_of(sample, cells), cells, rng)
    return cells


def _moved(vectors: Vectors, assigned: Rows, centroids: Vectors, rng: np.random.Generator) -> Vectors:
    """The centroids in the middle of what is assigned to them; one without anything halves a large one."""
    counts = np.bincount(assigned, minlength=len(centroids))
    used, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    starts = (np.cumsum(counts) - counts)[used]
    moved = np.empty_like(centroids)
    moved[used] = np.add.reduceat(vectors[np.argsort(assigned, kind="stable")], starts, axis=0)
    moved = _normalised(moved, used)
    noise = rng.standard_normal((len(empty), centroids.shape[1]), np.float32)
    # The largest first, and again from there when more are empty than used.
    sources = used[np.argsort(-counts[used], kind="stable")]
    moved[empty] = moved[np.resize(sources, len(empty))] + _SPLIT_NOISE * noise
    return _normalised(moved, empty)


def _normalised(vectors: Vectors, rows: npt.NDArray[np.int64] | None = None) -> Vectors:
    """Vectors of length 1, zeros left alone; with `rows`, those alone are changed, in place."""
    if rows is None:
        vectors, rows = vectors.copy(), np.arange(len(vectors))
    lengths = np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    vectors[rows] /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors
