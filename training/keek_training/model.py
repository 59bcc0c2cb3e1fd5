"""Both towers under one loss: the softmax of each request's target among the videos."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.towers.features import Tensors
from keek_training.backend import Tensor, keras, ops
from keek_training.config import TowerConfig
from keek_training.softmax import log_partition
from keek_training.towers import VideoTower, user_tower_of

_HIDDEN: Final = -1e9


class TwoTowers(keras.Model):
    """The towers as they train together; holds the catalogue's features on the device.

    A batch is a dict (`keek_training.batches` makes it):

        user            int32 [w, 2]      hashes
        candidates      int32 [c]         rows in the catalogue whose vectors the step needs;
                                          absent: the whole catalogue
        videos          int32 [w, k]      the history, as positions in the candidates
        kinds, ages_s   [w, k]            as in the contract
        positions       int32 [p]         which of the w * k positions are trained
        targets         int32 [p]         their targets, as positions in the candidates
        weights         float32 [p]       of the targets; 0 pads
        negatives       int32 [m]         as positions in the candidates; absent: all are
        log_expected    float32 [m]       log of how often each is expected among the negatives
    """

    def __init__(
        self,
        config: TowerConfig,
        features: Tensors,
        seed: int,
        softmax_precision: str = "float32",
        spare_read: bool = False,
    ) -> None:
        super().__init__(name="two_towers")
        self._softmax_precision, self._spare_read = softmax_precision, spare_read
        self.video_tower = VideoTower(config, seed)
        self.user_tower = user_tower_of(config, seed + 100)
        # Without any clip vector the tower is spared reading 512 zeros a video.
        used = {name: values for name, values in features.items() if name != "clip_vector" or values.any()}
        self._features = {name: self._constant(name, values) for name, values in used.items()}

    @property
    def learnt(self) -> list[Tensor]:
        """All variables but the catalogue's features: weights, and states of random numbers."""
        given = {id(weight) for weight in self._features.values()}
        return [variable for variable in self.variables if id(variable) not in given]

    def build(self, _input_shape: object) -> None:
        """The towers build themselves at their first call."""
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool = False) -> Tensor:
        """float32 [p]: the cross entropy of each target."""
        vectors = self._candidate_vectors(batch, training)
        own = ops.expand_dims(ops.cast(batch["kinds"] > 0, "float32"), -1)
        inputs = {
            "user": batch["user"],
            "history_vectors": ops.take(vectors, batch["videos"], axis=0) * own,
            "history_kinds": batch["kinds"],
            "history_ages_s": batch["ages_s"],
        }
        if "positions" not in batch:
            users = self.user_tower(inputs, training=training)
            read = (batch["videos"], batch["kinds"]) if self._spare_read else None
            return _set_softmax(users, vectors, batch["targets"], read)
        users = self.user_tower.every_position(inputs, training=training)
        users = ops.reshape(users, (-1, ops.shape(users)[-1]))
        users = ops.take(users, batch["positions"], axis=0)
        if "negatives" in batch:
            return _sampled_softmax(users, vectors, batch)
        if self._softmax_precision == "bfloat16":
            own = ops.sum(users * ops.take(vectors, batch["targets"], axis=0), axis=-1)
            return log_partition(users, vectors) - own
        return _full_softmax(users, vectors, batch["targets"])

    def compute_loss(
        self,
        x: dict[str, Tensor] | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """The weighted mean over the batch's targets."""
        assert x is not None
        return ops.sum(y_pred * x["weights"]) / ops.maximum(ops.sum(x["weights"]), 1e-6)

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> Tensor:
        weight = self.add_weight(
            shape=values.shape, dtype=str(values.dtype), initializer="zeros", trainable=False, name=name
        )
        weight.assign(values)
        return weight

    def _candidate_vectors(self, batch: dict[str, Tensor], training: bool) -> Tensor:
        features = dict(self._features)
        if "candidates" in batch:
            features = {
                name: ops.take(weight, batch["candidates"], axis=0) for name, weight in features.items()
            }
        return self.video_tower(features, training=training)


def _full_softmax(users: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """Every video of the catalogue is a candidate."""
    logits = ops.matmul(users, ops.transpose(vectors))
    return ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)


def _set_softmax(
    users: Tensor, vectors: Tensor, targets: Tensor, read: tuple[Tensor, Tensor] | None
) -> Tensor:
    """float32 [p, k]: of each of the targets, int32 [p, k], every video is a candidate, but for what the
    request reads, where that is given: its videos and kinds, int32 [p, length]."""
    logits = ops.matmul(users, ops.transpose(vectors))
    if read is not None:
        logits = logits + _hidden_places(*read, ops.shape(logits))
    own = ops.sum(ops.take(vectors, targets, axis=0) * ops.expand_dims(users, 1), axis=-1)
    return ops.logsumexp(logits, axis=-1, keepdims=True) - own


def _hidden_places(videos: Tensor, kinds: Tensor, shape: tuple[int, int]) -> Tensor:
    """float32 [p, videos]: below what any score is at the videos, int32 [p, length], that are no padding."""
    requests = ops.broadcast_to(ops.expand_dims(ops.arange(shape[0]), 1), ops.shape(videos))
    places = ops.stack([ops.reshape(requests, (-1,)), ops.reshape(videos, (-1,))], axis=-1)
    values = ops.reshape(_HIDDEN * ops.cast(kinds > 0, "float32"), (-1,))
    return ops.scatter(places, values, shape)


def _sampled_softmax(users: Tensor, vectors: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """The full softmax, its sum over the other videos estimated from shared negatives.

    Each negative stands for 1 / (how often it is expected among them) videos: without this
    correction popular videos, drawn often, would be held down. The target itself is no
    sample and is not corrected (Bengio and Senécal, "Adaptive importance sampling to
    accelerate training of a neural probabilistic language model", 2008).
    """
    targets, negatives = batch["targets"], batch["negatives"]
    own = ops.sum(users * ops.take(vectors, targets, axis=0), axis=-1)
    others = ops.matmul(users, ops.transpose(ops.take(vectors, negatives, axis=0)))
    others = others - ops.expand_dims(batch["log_expected"], 0)
    is_target = ops.equal(ops.expand_dims(targets, 1), ops.expand_dims(negatives, 0))
    others = ops.where(is_target, _HIDDEN, others)
    return ops.logsumexp(ops.concatenate([ops.expand_dims(own, 1), others], axis=1), axis=-1) - own
