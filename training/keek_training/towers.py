"""The two towers: a video's features to one vector, and which of the user towers a configuration wants."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

from typing import Final

import numpy as np

from keek_server.errors import SetupError
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION
from keek_server.towers.features import Float32Array
from keek_training.attention import AttentionTower
from keek_training.backend import Tensor, keras, ops
from keek_training.config import TowerConfig
from keek_training.layers import HashEmbedding, Standardise
from keek_training.ridge import RidgeTower
from keek_training.user_tower import UserTower

_DURATION_SCALE: Final = 0.2


class VideoTower(keras.Model):
    """id, owner, tags, duration and clip vector to one vector."""

    def __init__(self, config: TowerConfig, seed: int) -> None:
        super().__init__(name="video_tower")
        assert config.video_buckets is not None
        assert config.owner_buckets is not None
        assert config.tag_buckets is not None
        self.ids = HashEmbedding(config.video_buckets, DIMENSION, config.id_dropout, seed, "ids")
        self.owners = HashEmbedding(
            config.owner_buckets, config.owner_dimension, config.owner_dropout, seed + 1, "owners"
        )
        self._tag_buckets = config.tag_buckets
        self._tags = keras.layers.Embedding(config.tag_buckets, config.tag_dimension, name="tags")
        self.standardise = Standardise(name="standardise")
        # Begins at zero: without clip vectors in training, one in serving changes nothing.
        self._clip = keras.layers.Dense(
            config.clip_width, kernel_initializer="zeros", use_bias=False, name="clip"
        )
        self._width = config.content_width
        self._inner = keras.layers.Dense(config.content_width, activation="silu", name="inner")
        self._outer = keras.layers.Dense(DIMENSION, name="outer")

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """The contract's tensors, [n, ...] each, to [n, DIMENSION]; clip_vector may be absent."""
        return self.content(inputs, training=training) + self.ids(inputs["video"], training=training)

    def content(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """What a video's vector is but for its id: [n, DIMENSION]."""
        content = ops.concatenate(
            [
                self.owners(inputs["owner"], training=training),
                self._mean_tag(inputs["tags"]),
                self._duration(inputs["duration_s"]),
                self._pictures(inputs),
            ],
            axis=-1,
        )
        return self._outer(self._inner(content))

    def begin_content(self, projection: Float32Array) -> None:
        """Makes the content a linear map of the standardised clip vector; the rest says nothing yet.

        silu(x) - silu(-x) is x: each direction takes two units of the hidden layer.

        Args:
            projection: float32 [CLIP_DIMENSION, DIMENSION], zero but for `clip_width` columns or fewer.

        Raises:
            SetupError: When the layers are too narrow for it.
        """
        columns = np.flatnonzero(projection.any(axis=0))
        count = len(columns)
        if count > self._clip.units or 2 * count > self._width:
            raise SetupError(
                f"{count} directions of the clip vector need a clip_width of {count}"
                f" and a content_width of {2 * count}"
            )
        clip, inner, outer = (
            np.array(ops.convert_to_numpy(layer.kernel)) for layer in (self._clip, self._inner, self._outer)
        )
        clip[:], clip[:, :count] = 0, projection[:, columns]
        units, first = np.arange(count), len(inner) - self._clip.units
        inner[:, : 2 * count], outer[:] = 0, 0
        inner[first + units, units] = outer[units, columns] = 1
        inner[first + units, count + units] = outer[count + units, columns] = -1
        for layer, values in ((self._clip, clip), (self._inner, inner), (self._outer, outer)):
            layer.kernel.assign(values)

    def _pictures(self, inputs: dict[str, Tensor]) -> Tensor:
        """[n, clip_width]: the projected clip vector; zero for a video without one."""
        if "clip_vector" in inputs:
            return self._clip(self.standardise(ops.cast(inputs["clip_vector"], "float32")))
        nothing = self._clip(self.standardise(ops.zeros((1, CLIP_DIMENSION))))
        return ops.broadcast_to(nothing, (ops.shape(inputs["video"])[0], self._clip.units))

    def _mean_tag(self, tags: Tensor) -> Tensor:
        """int32 [n, tags] padded with zeros, to the mean over each row's own tags."""
        own = ops.expand_dims(ops.cast(tags > 0, "float32"), -1)
        summed = ops.sum(self._tags(ops.mod(tags, self._tag_buckets)) * own, axis=1)
        return summed / ops.maximum(ops.sum(own, axis=1), 1.0)

    def _duration(self, duration_s: Tensor) -> Tensor:
        """[n, 1] to [n, 2]: its logarithm, and whether it is known."""
        logs = _DURATION_SCALE * ops.log(1.0 + ops.maximum(duration_s, 0.0))
        return ops.concatenate([logs, ops.cast(duration_s > 0, "float32")], axis=-1)


def user_tower_of(config: TowerConfig, seed: int) -> UserTower:
    """The user tower that the configuration wants."""
    return RidgeTower(config, seed) if config.encoder == "ridge" else AttentionTower(config, seed)
