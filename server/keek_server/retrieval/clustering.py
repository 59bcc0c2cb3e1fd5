"""K-means for many lists: each vector is compared with the centroids near it alone.

Comparing every vector with every centroid costs n * k distances an iteration, which is
nearly all of an index's build. Here a few cells, found by plain k-means, say which
centroids can be the nearest at all.

Vectors keep their lengths, and so do centroids: where vectors of a direction differ in length, the long
ones get lists of their own, and the dot product with a query ranks these first, as it ranks what is in
them. Lists by direction alone need about twice as many to be searched.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

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
    """Clusters by Euclidean distance.

    Args:
        vectors: float32 [n, dimension], n >= k.
        k: Centroids.
        considered: Centroids that a vector is compared with, in each iteration of Lloyd's
            algorithm. The last ones need more, since by then a centroid moves little.

    Returns:
        The centroids, float32 [k, dimension], and the cells, float32 [cells, dimension], that
        `assign` finds them by.
    """
    rng = np.random.default_rng(0)
    cells = _train_cells(vectors, k, rng)
    grouped = Grouped.by_cell(vectors, cells)
    centroids = vectors[rng.choice(len(vectors), k, replace=False)]
    for number in considered:
        centroids = _moved(vectors, assign(grouped, cells, centroids, number), centroids, rng)
    return centroids, cells


def assign(grouped: Grouped, cells: Vectors, centroids: Vectors, considered: int) -> Rows:
    """The nearest centroid of each vector, among the `considered` ones nearest to its cell: int64 [n]."""
    considered = min(considered, len(centroids))
    near = faiss.knn(cells, centroids, considered)[1]
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
    """Which centroid is the nearest to each vector: int64 [n]."""
    _, rows = faiss.knn(vectors, centroids, 1)
    nearest: Rows = rows[:, 0]
    return nearest


def _train_cells(vectors: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    count = max(1, min(_CELLS_MOST, k // _CENTROIDS_PER_CELL))
    sample = vectors[rng.choice(len(vectors), min(len(vectors), _POINTS_PER_CELL * count), replace=False)]
    cells = sample[:count]
    for _ in range(_CELL_ITERATIONS):
        cells = _moved(sample, nearest_of(sample, cells), cells, rng)
    return cells


def _moved(vectors: Vectors, assigned: Rows, centroids: Vectors, rng: np.random.Generator) -> Vectors:
    """The centroids in the middle of what is assigned to them; one without anything halves a large one."""
    counts = np.bincount(assigned, minlength=len(centroids))
    used, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    starts = (np.cumsum(counts) - counts)[used]
    moved = np.empty_like(centroids)
    sums = np.add.reduceat(vectors[np.argsort(assigned, kind="stable")], starts, axis=0)
    moved[used] = sums / counts[used, None].astype(np.float32)
    noise = rng.standard_normal((len(empty), centroids.shape[1]), np.float32)
    noise *= np.sqrt(np.mean(np.square(moved[used])))
    # The largest first, and again from there when more are empty than used.
    sources = used[np.argsort(-counts[used], kind="stable")]
    moved[empty] = moved[np.resize(sources, len(empty))] + _SPLIT_NOISE * noise
    return moved
