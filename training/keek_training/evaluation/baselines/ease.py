"""EASE: a linear autoencoder in closed form, asked with the whole history, or with more of what is recent."""

from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np
from scipy.linalg import lapack

from keek_training.evaluation.baselines.gram import gram
from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.ranking import Score
from keek_training.features import Float32Array

_MOST_VIDEOS: Final = 20_000
_L2: Final = (30, 100, 300, 1000)


class Ease:
    """Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019."""

    name = "ease"
    grid: Sequence[Parameters] = tuple({"l2": l2} for l2 in _L2)
    most_videos: Final = _MOST_VIDEOS

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        weights = _weights(training, parameters["l2"])
        return lambda histories: histories.matrix() @ weights


class EaseRecency:
    """The same weights; what a user met before counts half after every so many videos."""

    name = "ease_recency"
    grid: Sequence[Parameters] = tuple(
        {"l2": l2, "half_life_videos": own} for l2, own in product(_L2, (3, 10, 30))
    )
    most_videos: Final = _MOST_VIDEOS

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        weights = _weights(training, parameters["l2"])
        half_life = parameters["half_life_videos"]
        return lambda histories: histories.matrix(0.5 ** (histories.places / half_life)) @ weights


def _weights(training: Training, l2: float) -> Float32Array:
    """float32 [videos, videos], the diagonal 0."""
    key = f"ease {l2:g}"
    found: Float32Array | None = training.memo.get(key)
    if found is None:
        found = training.memo[key] = _solved(gram(training), l2)
    return found


def _solved(shared: Float32Array, l2: float) -> Float32Array:
    regularised = shared + np.float32(l2) * np.eye(len(shared), dtype=np.float32)
    # The inverse of a symmetric matrix by its Cholesky factor: half the work of solving for it.
    factor, failed = lapack.spotrf(regularised, lower=1, overwrite_a=1)
    half, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert not failed
    assert not failed_too
    inverse = np.tril(half) + np.tril(half, -1).T
    weights: Float32Array = inverse / -inverse.diagonal()[None, :]
    np.fill_diagonal(weights, 0)
    return weights
