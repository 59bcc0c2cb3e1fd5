"""The user tower that solves for its vector: it is the ridge regression that it is told to be."""

from typing import Any

import numpy as np
import pytest

from keek_server.interactions.kinds import InteractionKind
from keek_training.config import TowerConfig
from keek_training.golden import golden_users
from keek_training.ridge import LOG_SKIP, RidgeTower

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LENGTH = 10
_BUCKETS = dict.fromkeys(("video_buckets", "owner_buckets", "tag_buckets", "user_buckets"), 64)


def _tower(solver_steps: int) -> RidgeTower:
    config = TowerConfig(
        encoder="ridge", solver_steps=solver_steps, history_length=LENGTH, longest_age_s=1e7, **_BUCKETS
    )
    tower = RidgeTower(config, 1)
    tower(golden_users(LENGTH))
    return tower


def _begin(tower: RidgeTower, held: np.ndarray, sharpness: float) -> None:
    """As after a training that has found what to hold the vectors by."""
    tower.begin(sharpness)
    lower = np.linalg.cholesky(np.linalg.inv(held))
    tower.vectors.kernel.assign(lower)
    tower.out.kernel.assign(np.asarray(tower.out.kernel) @ lower.T)


def _weight(tower: Any, name: str) -> Any:
    (found,) = (weight for weight in tower.weights if name in weight.path)
    return found


@pytest.fixture(scope="module")
def held() -> np.ndarray:
    """A matrix that a vector is held by, far from the identity."""
    rows = np.random.default_rng(3).normal(size=(80, 64))
    return rows.T @ rows / 80 + 0.3 * np.eye(64)


def _solved(held: np.ndarray, vectors: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.linalg.solve(held + (vectors * weights[:, None]).T @ vectors, vectors.T @ weights)


def test_a_users_vector_is_the_ridge_regression_on_the_history(held: np.ndarray) -> None:
    tower, inputs = _tower(LENGTH), golden_users(LENGTH)
    _begin(tower, held, 7.0)
    scales = np.log(np.array([1.0, 1, 2, 0.5, 3, 0.1, 1, 1, 1, 1])[: max(InteractionKind) + 1])
    _weight(tower, "kind_scales").assign(scales[:, None])
    found = np.asarray(tower(inputs))
    for row in range(len(found)):
        kinds = inputs["history_kinds"][row]
        vectors = inputs["history_vectors"][row][kinds > 0].astype(np.float64)
        expected = 7.0 * _solved(held, vectors, np.exp(scales[kinds[kinds > 0]]))
        np.testing.assert_allclose(found[row], expected, atol=1e-3 * max(1.0, np.abs(expected).max()))


def test_as_many_steps_as_a_history_has_videos_are_exact_and_fewer_are_not(held: np.ndarray) -> None:
    tower, inputs = _tower(3), golden_users(LENGTH)
    _begin(tower, held, 1.0)
    weights = np.where(inputs["history_kinds"] == InteractionKind.SKIP, np.exp(LOG_SKIP), 1)
    lengths = (inputs["history_kinds"] > 0).sum(axis=1)
    errors = []
    for row, vector in enumerate(np.asarray(tower(inputs))):
        own = slice(LENGTH - lengths[row], LENGTH)
        vectors = inputs["history_vectors"][row, own].astype(np.float64)
        errors.append(np.abs(vector - _solved(held, vectors, weights[row, own])).max())
    assert max(error for error, length in zip(errors, lengths, strict=True) if length <= 3) < 1e-4
    assert max(error for error, length in zip(errors, lengths, strict=True) if length > 6) > 1e-3


def test_ages_weigh_what_a_user_met_once_training_has_found_how(held: np.ndarray) -> None:
    tower, inputs = _tower(LENGTH), golden_users(LENGTH)
    _begin(tower, held, 1.0)
    before = np.asarray(tower(inputs))
    other = inputs | {"history_ages_s": inputs["history_ages_s"] * 0.5}
    np.testing.assert_array_equal(np.asarray(tower(other)), before)
    _weight(tower, "decay").assign(np.full((9, 1), -1.0))
    assert np.abs(np.asarray(tower(other)) - np.asarray(tower(inputs)))[2].max() > 1e-3
