"""A user tower that attends to the history: what is near, by place and by age, may count more.

As the other layers, it must convert to ONNX.
"""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

import math

from keek_server.towers.contract import DIMENSION
from keek_training.backend import Tensor, keras, ops
from keek_training.config import TowerConfig
from keek_training.layers import KIND_COUNT, MASKED
from keek_training.user_tower import UserTower


class CausalAttention(keras.layers.Layer):
    """Multi-head attention with learned biases of how far back and how long ago a key is.

    The biases are relative to each query, so that a vector does not depend on where in a
    window it was computed (as in HSTU: Zhai et al., "Actions Speak Louder than Words", 2024).
    """

    def __init__(self, heads: int, longest_distance: int, age_bias: bool, name: str) -> None:
        super().__init__(name=name)
        self._heads = heads
        self._longest = longest_distance
        self._query, self._key, self._value, self._out = (
            keras.layers.Dense(DIMENSION, name=part) for part in ("query", "key", "value", "out")
        )
        self._age_bias = None
        if age_bias:
            self._age_bias = keras.layers.Dense(
                heads, use_bias=False, kernel_initializer="zeros", name="age_bias"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the table of biases by distance."""
        self.distance_bias = self.add_weight(
            shape=(self._longest, self._heads), initializer="zeros", name="distance_bias"
        )
        super().build(input_shape)

    def call(
        self, queries: Tensor, keys: Tensor, ages: Tensor | None, hidden: Tensor, last_only: bool = False
    ) -> Tensor:
        """Attends from q positions, all k or with `last_only` the last, to those of k that are not later.

        Args:
            queries: [n, q, DIMENSION].
            keys: [n, k, DIMENSION].
            ages: [n, q, k, 9], from AgeFeatures; not read without a bias of ages.
            hidden: float32 [n, k], 0, or MASKED for keys that are padding. A position that sees
                nothing else sees the padding before it, which is all alike.
        """
        bias = self._bias(ops.shape(keys)[1], last_only) + hidden[:, None, None]
        if self._age_bias is not None:
            bias = bias + ops.transpose(self._age_bias(ages), (0, 3, 1, 2))
        query = self._split(self._query(queries) * (1.0 / math.sqrt(DIMENSION / self._heads)))
        scores = ops.matmul(query, ops.transpose(self._split(self._key(keys)), (0, 1, 3, 2))) + bias
        mixed = ops.matmul(ops.softmax(scores, axis=-1), self._split(self._value(keys)))
        merged = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, ops.shape(queries)[1], DIMENSION))
        return self._out(merged)

    def _bias(self, count: Tensor, last_only: bool) -> Tensor:
        """[heads, count, count], or [heads, 1, count]: by distance, and twice MASKED for what is later:
        where all that is earlier is padding, that is seen, and nothing later.

        The rows of the whole are one row that moves on by one each time. A row of twice the length,
        repeated and cut into rows that are one shorter, is just that: copies, where a lookup of every
        pair, and its gradient, would be most of a step.
        """
        distances = ops.clip(ops.arange(count - 1, -1, -1), 0, self._longest - 1)
        row = ops.transpose(ops.take(self.distance_bias, distances, axis=0))
        if last_only:
            return ops.expand_dims(row, 1)
        rows = ops.tile(ops.concatenate([row, ops.full_like(row, 2 * MASKED)], axis=1), (1, count))
        rows = ops.reshape(rows[:, : count * (2 * count - 1)], (self._heads, count, 2 * count - 1))
        return rows[:, :, count - 1 :]

    def _split(self, x: Tensor) -> Tensor:
        """[n, length, DIMENSION] to [n, heads, length, DIMENSION / heads]."""
        shape = (-1, ops.shape(x)[1], self._heads, DIMENSION // self._heads)
        return ops.transpose(ops.reshape(x, shape), (0, 2, 1, 3))


class Block(keras.layers.Layer):
    """Attention, then a feed-forward part, each normalised before and added to what came in."""

    def __init__(
        self,
        heads: int,
        longest_distance: int,
        feed_forward: int,
        dropout: float,
        name: str,
        age_bias: bool = True,
    ) -> None:
        super().__init__(name=name)
        self._norms = [keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_{i}") for i in (0, 1)]
        self._attention = CausalAttention(heads, longest_distance, age_bias, name="attention")
        self._inner = keras.layers.Dense(feed_forward, activation="silu", name="inner")
        self._outer = keras.layers.Dense(DIMENSION, name="outer")
        self._dropout = keras.layers.Dropout(dropout)

    def call(
        self,
        x: Tensor,
        ages: Tensor | None,
        hidden: Tensor,
        last_only: bool = False,
        training: bool = False,
    ) -> Tensor:
        """[n, k, DIMENSION] to the same, or to [n, 1, DIMENSION] with `last_only`.

        `ages` and `hidden` are those of CausalAttention.
        """
        keys = self._norms[0](x)
        queries, x = (keys[:, -1:], x[:, -1:]) if last_only else (keys, x)
        mixed = self._attention(queries, keys, ages, hidden, last_only=last_only)
        x = x + self._dropout(mixed, training=training)
        return x + self._dropout(self._outer(self._inner(self._norms[1](x))), training=training)


class AttentionTower(UserTower):
    """Blocks of causal attention over the history, one token an interaction."""

    def __init__(self, config: TowerConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm_in")
        self._vectors = keras.layers.Dense(
            DIMENSION, use_bias=False, kernel_initializer="identity", name="vectors"
        )
        self._kind_scales = keras.layers.Embedding(
            KIND_COUNT, DIMENSION, embeddings_initializer="ones", name="kind_scales"
        )
        self._kinds = keras.layers.Embedding(KIND_COUNT, DIMENSION, name="kinds")
        self._gaps = keras.layers.Dense(DIMENSION, use_bias=False, name="gaps")
        self._dropout = keras.layers.Dropout(config.dropout)
        self._age_bias = config.age_bias
        self._blocks = [
            Block(
                config.heads,
                config.history_length,
                config.feed_forward,
                config.dropout,
                f"block_{i}",
                config.age_bias,
            )
            for i in range(config.blocks)
        ]
        self._norm_out = keras.layers.LayerNormalization(epsilon=1e-6, name="norm_out")
        self._out = keras.layers.Dense(DIMENSION, kernel_initializer="identity", name="out")

    @property
    def blocks(self) -> list[Block]:
        """The attention blocks, in their order."""
        return list(self._blocks)

    def _encode(self, inputs: dict[str, Tensor], last_only: bool, training: bool) -> Tensor:
        kinds, ages_s = inputs["history_kinds"], inputs["history_ages_s"]
        # How long before the window's end each position's own request was.
        requests_s = ops.concatenate([ages_s[:, 1:], ops.zeros_like(ages_s[:, :1])], axis=1)
        x = self._tokens(inputs["history_vectors"], kinds, ages_s - requests_s, training)
        hidden = MASKED * ops.cast(kinds == 0, "float32")
        pair_ages = None
        for block in self._blocks:
            last = last_only and block is self._blocks[-1]
            if last:
                requests_s = requests_s[:, -1:]
            # Of a block that answers for the newest position alone, one row: the rest would cost the most.
            if self._age_bias and (last or pair_ages is None):
                pair_ages = self._ages(ops.expand_dims(ages_s, 1) - ops.expand_dims(requests_s, 2))
            x = block(x, pair_ages, hidden, last_only=last, training=training)
        user = ops.expand_dims(self.ids(inputs["user"], training=training), 1)
        return self._out(self._norm_out(x) + user)

    def _tokens(self, vectors: Tensor, kinds: Tensor, gaps_s: Tensor, training: bool) -> Tensor:
        """One token an interaction: the video as its kind scales it, the kind, the time until the next."""
        x = self._vectors(self._norm(vectors)) * self._kind_scales(kinds)
        x = x + self._kinds(kinds) + self._gaps(self._ages(gaps_s))
        return self._dropout(x, training=training)
