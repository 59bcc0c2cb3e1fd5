"""A user tower that solves for its vector, as a matrix factorisation does at the request."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

from typing import Final

import numpy as np

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import DIMENSION
from keek_training.backend import Tensor, keras, ops
from keek_training.config import TowerConfig
from keek_training.layers import KIND_COUNT
from keek_training.user_tower import UserTower

# Below this a residual is rounding, and dividing by it would blow that up.
_LEAST: Final = 1e-12
LOG_SKIP: Final = -4.0
"""Logarithm of what a skip weighs at first, where others weigh 1."""


class RidgeTower(UserTower):
    """The ridge regression of 1 on the history's vectors.

    It is the step of iALS that folds a user in (Hu et al., "Collaborative Filtering for Implicit Feedback
    Datasets", 2008): x = argmin sum_s w_s (1 - x v_s)^2 + x' G x. Where G = (L L')^-1, x is L z, and z solves
    z + sum_s w_s h_s (h_s z) = sum_s w_s h_s, h_s = L' v_s, by conjugate gradients: after k steps exactly
    where a history has k videos. So two videos that say the same count little more than one, which attention
    has to learn and few data do not teach.

    L is `vectors` on the way in and `out` on the way out; w_s is learnt by kind and age.
    """

    def __init__(self, config: TowerConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.vectors = keras.layers.Dense(
            DIMENSION, use_bias=False, kernel_initializer="identity", name="vectors"
        )
        self._kinds = keras.layers.Embedding(
            KIND_COUNT, 1, embeddings_initializer="zeros", name="kind_scales"
        )
        self._decay = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="decay")
        self._dropout = keras.layers.Dropout(config.dropout)
        self._steps = config.solver_steps
        self.out = keras.layers.Dense(DIMENSION, kernel_initializer="identity", name="out")

    def begin(self, sharpness: float) -> None:
        """Makes it answer `sharpness` times the ridge regression where G is the identity. Everything weighs
        the same but what was skipped: that hardly counts."""
        scales = np.zeros((KIND_COUNT, 1), np.float32)
        scales[InteractionKind.SKIP] = LOG_SKIP
        self._kinds.embeddings.assign(scales)
        self.out.kernel.assign(sharpness * np.eye(DIMENSION))

    def _encode(self, inputs: dict[str, Tensor], last_only: bool, training: bool) -> Tensor:
        kinds, ages_s = inputs["history_kinds"], inputs["history_ages_s"]
        keys = self.vectors(inputs["history_vectors"])
        weights = self._weights(kinds, ages_s, last_only, training)
        user = ops.expand_dims(self.ids(inputs["user"], training=training), 1)
        return self.out(self._solved(keys, weights, ops.matmul(weights, keys) + user))

    def _weights(self, kinds: Tensor, ages_s: Tensor, last_only: bool, training: bool) -> Tensor:
        """[n, q, k]: what each interaction weighs for each request; 0 for padding and for what is later."""
        requests_s = ops.zeros_like(ages_s[:, :1])
        if not last_only:
            requests_s = ops.concatenate([ages_s[:, 1:], requests_s], axis=1)
        ages = self._ages(ops.expand_dims(ages_s, 1) - ops.expand_dims(requests_s, 2))
        own = ops.cast(kinds > 0, "float32")
        logs = ops.expand_dims(self._kinds(kinds)[..., 0], 1) + self._decay(ages)[..., 0]
        weights = ops.exp(logs) * ops.expand_dims(self._dropout(own, training=training), 1)
        if last_only:
            return weights
        places = ops.arange(ops.shape(kinds)[1])
        earlier = ops.expand_dims(places, 0) <= ops.expand_dims(places, 1)
        return weights * ops.cast(earlier, "float32")

    def _solved(self, keys: Tensor, weights: Tensor, right: Tensor) -> Tensor:
        """[n, q, DIMENSION]: z of z + sum_s weights_s keys_s (keys_s z) = right."""
        turned = ops.transpose(keys, (0, 2, 1))
        solved, residual, direction = ops.zeros_like(right), right, right
        size = ops.sum(residual * residual, axis=-1, keepdims=True)
        for step in range(self._steps):
            image = direction + ops.matmul(ops.matmul(direction, turned) * weights, keys)
            rate = size / ops.maximum(ops.sum(direction * image, axis=-1, keepdims=True), _LEAST)
            solved = solved + rate * direction
            if step + 1 < self._steps:
                residual = residual - rate * image
                before, size = size, ops.sum(residual * residual, axis=-1, keepdims=True)
                direction = residual + size / ops.maximum(before, _LEAST) * direction
        return solved
