"""The parts of the towers: hashed ids, standardised clip vectors, and ages.

`keras.ops` alone, so that they run on every backend of Keras. They must convert to ONNX:
no exact `gelu`, no `log1p`, and no tensor that is made while a layer is built and is not a
weight, because it would become one more input of the model.
"""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.interactions.kinds import InteractionKind
from keek_training.backend import Tensor, keras, ops

KIND_COUNT: Final = max(InteractionKind) + 1
"""Kinds of interaction, padding included."""

_KNOTS_S: Final = (0.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0)
_KNOTS: Final = [math.log(1 + knot) for knot in _KNOTS_S]
# Brings the features to about the size of one: log(1 + a month) is 15.
_AGE_SCALE: Final = 0.1
# Not beyond float16, where it would be infinite.
MASKED: Final = -3e4
"""Added to the scores of what is not seen: the softmax makes it 0."""
_FILTER_ROWS_PER_BUCKET: Final = 8
_FIRST_SPREAD: Final = 0.02
_LEAST_SPREAD: Final = 1e-6
_SAMPLE: Final = 50_000
_SAMPLE_SEED: Final = 20_260_101


class HashEmbedding(keras.layers.Layer):
    """Embeds ids that come as two hashes: the sum of a row from each of two tables.

    Only ids that training knew are embedded, every other gives one learned vector: the
    rows that a new id falls on belong to others. A Bloom filter in the weights remembers
    the known ones; with eight bits an id it takes 1.4 % of the others for known.
    """

    def __init__(self, buckets: int, dimension: int, hide_rate: float, seed: int, name: str) -> None:
        super().__init__(name=name)
        self._buckets = buckets
        self._dimension = dimension
        self._hide_rate = hide_rate
        self._filter_rows = buckets * _FILTER_ROWS_PER_BUCKET
        self._seeds = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the tables and the filter."""
        shape = (self._buckets, self._dimension)
        self.tables = [
            self.add_weight(
                shape=shape,
                initializer=keras.initializers.RandomNormal(stddev=_FIRST_SPREAD, seed=i),
                name=f"table_{i}",
            )
            for i in (0, 1)
        ]
        self.unknown = self.add_weight(shape=(self._dimension,), initializer="zeros", name="unknown")
        self.known = [
            self.add_weight(
                shape=(self._filter_rows,),
                initializer="zeros",
                dtype="uint8",
                trainable=False,
                name=f"known_{i}",
            )
            for i in (0, 1)
        ]
        super().build(input_shape)

    @property
    def buckets(self) -> int:
        """Rows of each of the two tables."""
        return self._buckets

    def remember(self, hashes: npt.NDArray[Any]) -> None:
        """Takes the ids with these hashes, int32 [n, 2], for known; the empty id, zeros, never is."""
        for column, weight in enumerate(self.known):
            bits = np.zeros(self._filter_rows, np.uint8)
            bits[hashes[:, column] % self._filter_rows] = 1
            bits[0] = 0
            weight.assign(bits)

    def learn(self, hashes: npt.NDArray[Any]) -> int:
        """Takes further ids for known; each begins where the unknown ones are.

        One of its two rows, if no known id has it yet, is set so that their sum is the vector of the
        unknown: being known changes nothing before training does. Where others have both rows, their
        sum it is.

        Args:
            hashes: int32 [n, 2]; ids that are known already stay as they are.

        Returns:
            How many are new.
        """
        places = hashes.astype(np.int64) % self._filter_rows
        known = [np.array(keras.ops.convert_to_numpy(weight)) for weight in self.known]
        is_new = (known[0][places[:, 0]] == 0) | (known[1][places[:, 1]] == 0)
        new = np.unique(places[is_new & hashes.any(axis=1)], axis=0)
        self._begin_as_unknown(new % self._buckets, [self._used(bits) for bits in known])
        for column, weight in enumerate(self.known):
            known[column][new[:, column]] = 1
            known[column][0] = 0
            weight.assign(known[column])
        return len(new)

    def _used(self, bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Which rows of a table known ids have: bool [buckets]; the filter's rows fold onto them."""
        return np.asarray(bits.reshape(-1, self._buckets).any(axis=0), np.bool_)

    def _begin_as_unknown(self, rows: npt.NDArray[np.int64], used: list[npt.NDArray[np.bool_]]) -> None:
        tables = [np.array(keras.ops.convert_to_numpy(table)) for table in self.tables]
        unknown = keras.ops.convert_to_numpy(self.unknown)
        for pair in rows.tolist():
            for own, other in ((0, 1), (1, 0)):
                if not used[own][pair[own]]:
                    tables[own][pair[own]] = unknown - tables[other][pair[other]]
                    break
            used[0][pair[0]] = used[1][pair[1]] = True
        for table, values in zip(self.tables, tables, strict=True):
            table.assign(values)

    def call(self, hashes: Tensor, training: bool = False) -> Tensor:
        """int32 [n, 2] to float32 [n, dimension]."""
        first, second = hashes[:, 0], hashes[:, 1]
        rows = [
            ops.take(t, ops.mod(h, self._buckets), axis=0)
            for t, h in zip(self.tables, (first, second), strict=True)
        ]
        bits = [
            ops.take(k, ops.mod(h, self._filter_rows))
            for k, h in zip(self.known, (first, second), strict=True)
        ]
        known = ops.cast(bits[0], "float32") * ops.cast(bits[1], "float32")
        if training and self._hide_rate > 0:
            draws = keras.random.uniform(ops.shape(known), seed=self._seeds)
            known = known * ops.cast(draws >= self._hide_rate, "float32")
        known = ops.expand_dims(known, -1)
        return known * (rows[0] + rows[1]) + (1.0 - known) * self.unknown


class Standardise(keras.layers.Layer):
    """Takes from vectors what all of them share, and scales the rest to about the size of one.

    The clip vectors of any two pictures are much alike. A vector of zeros, of a video without one,
    stays as it is.
    """

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has seen vectors."""
        return bool(keras.ops.convert_to_numpy(self.mean).any())

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the mean and the scale, which change nothing before `fit`."""
        self.mean = self.add_weight(shape=input_shape[-1:], initializer="zeros", trainable=False, name="mean")
        self.scale = self.add_weight(shape=(), initializer="ones", trainable=False, name="scale")
        super().build(input_shape)

    def fit(self, vectors: npt.NDArray[Any]) -> None:
        """Takes both from the vectors of a data set, [n, dimension], those of zeros left out.

        Of many, a sample that is the same every time stands for all.
        """
        present = np.flatnonzero(vectors.any(axis=1))
        if len(present) > _SAMPLE:
            chosen = np.random.default_rng(_SAMPLE_SEED).choice(present, _SAMPLE, replace=False)
            present = np.sort(chosen)
        if len(present) > 1:
            rows = np.asarray(vectors[present], np.float32)
            mean = rows.mean(axis=0)
            self.mean.assign(mean)
            self.scale.assign(1.0 / max(float(np.sqrt(np.mean((rows - mean) ** 2))), _LEAST_SPREAD))

    def call(self, vectors: Tensor) -> Tensor:
        """float32 [n, dimension] to the same."""
        present = ops.cast(ops.max(ops.abs(vectors), axis=-1, keepdims=True) > 0, "float32")
        return (vectors - self.mean) * self.scale * present


class AgeFeatures(keras.layers.Layer):
    """Ages as piecewise linear functions of their logarithm, with knots from 10 s to a month.

    Interpolation has no steps, unlike buckets, so that a rounding difference between two
    runtimes stays one.
    """

    def __init__(self, longest_s: float, name: str) -> None:
        super().__init__(name=name)
        self._longest_s = longest_s

    def call(self, ages_s: Tensor) -> Tensor:
        """Seconds, any shape [...], to [..., 9]; below 0 counts as 0."""
        logs = ops.log(1.0 + ops.clip(ages_s, 0.0, self._longest_s))
        return _AGE_SCALE * ops.relu(ops.expand_dims(logs, -1) - ops.convert_to_tensor(_KNOTS, "float32"))
