"""The ranker: a user's vector, and a page's candidates, to a score for each."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.towers.contract import RANKING_FEATURES
from keek_training.backend import Tensor, keras, ops

_PAIR_WIDTH: Final = 16
_INNER_WIDTH: Final = 32
_DROPOUT: Final = 0.1
_LEAST_SPREAD: Final = 1e-6
_AFFINITY: Final = RANKING_FEATURES.index("affinity")


class RankerModel(keras.Model):
    """Each candidate by itself: a small network of its features, and of the products of its vector's elements
    with the user's, added to the dot product.

    Before it is trained it orders as the dot product does.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(name="ranker")
        self.features = Scaled(name="features")
        self.products = Scaled(name="products")
        self._pairs = _dense(_PAIR_WIDTH, seed, "pairs", activation="silu")
        self._inner = _dense(_INNER_WIDTH, seed + 1, "inner", activation="silu")
        self._dropout = keras.layers.Dropout(_DROPOUT, seed=seed + 2)
        self._outer = keras.layers.Dense(1, kernel_initializer="zeros", name="outer")
        self._affinity = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="affinity")

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """The contract's tensors, [n, ...] each, to [n, candidates]; 0 where there is no candidate."""
        features = self.features(inputs["features"])
        products = self.products(ops.expand_dims(inputs["user_vector"], 1) * inputs["video_vectors"])
        inner = self._inner(ops.concatenate([self._pairs(products), features], axis=-1))
        added = self._outer(self._dropout(inner, training=training))
        own = self._affinity(features[..., _AFFINITY : _AFFINITY + 1])
        return ops.squeeze(own + added, -1) * inputs["mask"]


class Scaled(keras.layers.Layer):
    """Takes from each feature its mean and divides by its spread, as `fit` found them."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes means and scales, which change nothing before `fit`."""
        shape = input_shape[-1:]
        self.mean = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="scale")
        super().build(input_shape)

    def fit(self, rows: npt.NDArray[np.float32]) -> None:
        """Takes both from float32 [n, features], n above 0; what never differs stays out of it."""
        spread = rows.std(axis=0)
        self.mean.assign(rows.mean(axis=0))
        self.scale.assign(np.where(spread > _LEAST_SPREAD, 1.0 / np.maximum(spread, _LEAST_SPREAD), 0.0))

    def call(self, values: Tensor) -> Tensor:
        """float32 [..., features] to the same."""
        return (values - self.mean) * self.scale


def _dense(width: int, seed: int, name: str, **options: Any) -> Any:
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.layers.Dense(width, kernel_initializer=initializer, name=name, **options)
