"""Clustering with few comparisons finds nearly what k-means with all of them finds."""

import numpy as np
import pytest

from keek_server.retrieval.clustering import Grouped, assign, nearest_of, train_centroids
from keek_server.retrieval.index import Vectors


def clustered(count: int, clusters: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(clusters, 64))
    return (centres[rng.integers(0, clusters, count)] + 0.5 * rng.normal(size=(count, 64))).astype(np.float32)


def test_centroids_lie_in_the_middle_of_what_is_near_them() -> None:
    vectors = clustered(20_000, 40, 1)
    centroids, _ = train_centroids(vectors, 80, [80] * 8)
    nearest = nearest_of(vectors, centroids)
    # Of a vector and its cluster's centre: 0.5 a dimension.
    assert np.sqrt(np.mean(np.square(vectors - centroids[nearest]))) < 0.55
    means = np.array([vectors[nearest == cell].mean(axis=0) for cell in range(80)])
    assert np.abs(means - centroids).max() < 0.2


def test_long_vectors_of_a_direction_get_lists_of_their_own() -> None:
    direction = np.random.default_rng(7).normal(size=64).astype(np.float32)
    short = np.linspace(0.9, 1.1, 500, dtype=np.float32)[:, None] * direction
    centroids, _ = train_centroids(np.concatenate([short, 3 * short]), 8, [8] * 8)
    lengths = np.sort(np.linalg.norm(centroids, axis=1) / np.linalg.norm(direction))
    assert lengths[0] < 1.2
    assert lengths[-1] > 2.6


def test_few_considered_centroids_find_nearly_always_the_nearest() -> None:
    vectors = clustered(50_000, 300, 2)
    centroids, cells = train_centroids(vectors[:20_000], 800, [100] * 8)
    exact = nearest_of(vectors, centroids)
    grouped = Grouped.by_cell(vectors, cells)
    shares = [
        np.mean(assign(grouped, cells, centroids, considered) == exact) for considered in (50, 200, 800)
    ]
    assert shares == sorted(shares)
    assert shares[1] > 0.9
    # Two centroids may tie, and a product of another shape rounds otherwise.
    assert shares[2] > 0.999


def test_the_groups_hold_every_row_once_in_its_nearest_cell() -> None:
    vectors = clustered(1000, 10, 3)
    cells = vectors[:7]
    grouped = Grouped.by_cell(vectors, cells)
    rows = list(grouped)
    assert len(rows) == 7
    assert sorted(np.concatenate(rows).tolist()) == list(range(1000))
    for cell, own in enumerate(rows):
        assert (nearest_of(vectors[own], cells) == cell).all()


@pytest.mark.parametrize("vectors", [np.zeros((500, 64), np.float32), np.ones((500, 64), np.float32)])
def test_vectors_that_are_all_alike_or_zero_do_no_harm(vectors: Vectors) -> None:
    centroids, cells = train_centroids(vectors, 50, [50] * 4)
    assert np.isfinite(centroids).all()
    assigned = assign(Grouped.by_cell(vectors, cells), cells, centroids, 50)
    assert ((assigned >= 0) & (assigned < 50)).all()


def test_more_empty_lists_than_used_ones_are_split_from_the_used_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Memory that nobody has set must not be read, whatever it holds.
    monkeypatch.setattr(np, "empty_like", lambda array: np.full(array.shape, np.nan, array.dtype))
    vector = np.random.default_rng(6).normal(size=64).astype(np.float32)
    vectors = np.tile(vector, (30_000, 1))
    centroids, _ = train_centroids(vectors, 690, [128] * 3)
    assert np.abs(centroids - vector).max() < 0.1 * np.abs(vector).max()


def test_the_same_vectors_give_the_same_centroids() -> None:
    vectors = clustered(5000, 30, 4)
    first, second = (train_centroids(vectors, 60, [20, 60])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_as_many_centroids_as_vectors_are_possible() -> None:
    vectors = clustered(9, 3, 5)
    centroids, _ = train_centroids(vectors, 9, [9, 9])
    assert centroids.shape == (9, 64)
