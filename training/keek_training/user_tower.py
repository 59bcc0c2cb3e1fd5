"""What every user tower is, whatever reads its history."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

from typing import Any

from keek_server.towers.contract import DIMENSION
from keek_training.backend import Tensor, keras
from keek_training.config import TowerConfig
from keek_training.layers import AgeFeatures, HashEmbedding


class UserTower(keras.Model):
    """A user's id and history to one vector.

    `call` is what is served: the vector after the newest interaction. `every_position`
    is what trains: the same for every position of a history, as if it ended there.
    """

    def __init__(self, config: TowerConfig, seed: int) -> None:
        super().__init__(name="user_tower")
        assert config.user_buckets is not None
        assert config.longest_age_s is not None
        # Before all that a tower adds: checkpoints hold weights in this order.
        self.ids = HashEmbedding(config.user_buckets, DIMENSION, config.user_dropout, seed, "ids")
        self._ages = AgeFeatures(config.longest_age_s, "ages")

    @property
    def blocks(self) -> list[Any]:
        """The attention blocks, in their order; none where nothing attends."""
        return []

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """The contract's tensors, [n, ...] each, to [n, DIMENSION]."""
        return self._encode(inputs, last_only=True, training=training)[:, 0]

    def every_position(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        """The contract's tensors, histories of k positions, to [n, k, DIMENSION].

        The request of a position is the moment of the next one, and that of the last is
        where all ages count from.
        """
        return self._encode(inputs, last_only=False, training=training)

    def _encode(self, inputs: dict[str, Tensor], last_only: bool, training: bool) -> Tensor:
        """[n, k, DIMENSION], or [n, 1, DIMENSION] with `last_only`."""
        raise NotImplementedError
