"""A model of rewards for doubly robust estimates: mean rewards by what is known of a slot."""

from typing import Final

import numpy as np

from keek_server.experiments.logs import BoolArray, FloatArray, Int64Array

FOLDS: Final = 5
"""Of users: each one's rewards are predicted from those of the others."""
_PRIOR_SLOTS: Final = 50.0
"""A cell is drawn to the one above it as if that had been seen so often."""


def folds_of(users: Int64Array) -> Int64Array:
    """The fold of each of n users, [n]; the same for the same user."""
    # Codes of users may follow anything, as the time they came.
    _, places = np.unique(users, return_inverse=True)
    folds: Int64Array = np.random.default_rng(0).integers(FOLDS, size=len(users))[places]
    return folds


def cell_means(
    cells: tuple[Int64Array, Int64Array, Int64Array, Int64Array],
    shape: tuple[int, int, int, int],
    rewards: FloatArray,
    usable: BoolArray,
) -> FloatArray:
    """Means over all other folds, each drawn to that over its cells along the last axis, that one to the mean
    along the last two, and so on.

    Args:
        cells: [m] each: the fold of a slot, and where it stands along the three other axes.
        shape: How many there are of each.
        rewards: float64 [m].
        usable: bool [m]: the slots that are counted.

    Returns:
        float64 of that shape.
    """
    flat = np.ravel_multi_index(cells, shape)[usable]
    size = int(np.prod(shape))
    sums = np.bincount(flat, rewards[usable], minlength=size).reshape(shape)
    counts = np.bincount(flat, minlength=size).reshape(shape).astype(np.float64)
    sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts
    means = np.zeros((shape[0], 1, 1, 1))
    for axes in ((1, 2, 3), (2, 3), (3,), ()):
        own, seen = sums.sum(axis=axes, keepdims=True), counts.sum(axis=axes, keepdims=True)
        means = (own + _PRIOR_SLOTS * means) / (seen + _PRIOR_SLOTS)
    return means
