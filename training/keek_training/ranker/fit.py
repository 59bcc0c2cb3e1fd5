"""Training a ranker by the pages of a log."""

# Keras has no type hints, so its classes are Any to mypy.
# mypy: disable-error-code="misc"

import logging
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keek_server.experiments.logs import FloatArray
from keek_server.towers.contract import RANKING_FEATURES
from keek_server.towers.features import Float32Array, Tensors
from keek_training.backend import Tensor, keras, ops
from keek_training.layers import MASKED
from keek_training.ranker.judge import mean_ndcg
from keek_training.ranker.model import RankerModel
from keek_training.ranker.pages import Pages

logger = logging.getLogger(__name__)

POSITIONS: Final = 50
"""Slots of a page that have a bias of their own; all further ones share the last."""
LEAST_EXAMINED: Final = 0.1
"""Less likely than this, beside the first slot, no slot is taken to be looked at: a weight of ten at most."""

_TRAIN, _VALIDATION = 0.7, 0.15
"""The earliest part of the pages, and the part after it that says when to stop; the rest judges."""
_BATCH: Final = 256
_MOST_EPOCHS: Final = 30
_PATIENCE: Final = 3
_LEARNING_RATE: Final = 2e-3
_WEIGHT_DECAY: Final = 1e-3
_BIAS_PENALTY: Final = 1e-3
_BIAS_SPEED: Final = 10.0
"""Biases are few and may have far to go: they move so many times as fast as weights."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained ranker, and how it orders pages that are later than all that it learnt from."""

    model: RankerModel
    examined: FloatArray
    """float64 [POSITIONS]: how likely a slot is looked at, beside the first one."""
    ndcg: float
    ndcg_dot_product: float
    page_counts: tuple[int, int, int]
    """Pages that trained, that said when to stop, and that judged."""
    epochs: int


def fit_ranker(pages: Pages, seed: int = 0) -> Fitted:
    """Listwise: of a page's personalised videos, a softmax over score and position should give each what came
    of it. The bias of a position is learnt beside, and left out in serving.

    Args:
        pages: Some dozens at least.
        seed: Of weights, and of the order of batches.
    """
    ends = int(_TRAIN * len(pages)), int((_TRAIN + _VALIDATION) * len(pages))
    train, validation, latest = (
        pages.part(start, end) for start, end in zip((0, *ends), (*ends, len(pages)), strict=True)
    )
    model = RankerModel(seed)
    model(_some(train.inputs, slice(0, 1)))
    _scale(model, train)
    training = _Training(model)
    training.compile(
        optimizer=keras.optimizers.AdamW(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY), jit_compile=False
    )
    epochs = _train(training, _batch(train), _batch(validation), seed)
    examined = _examined(training.biases)
    return Fitted(
        model,
        examined,
        mean_ndcg(latest, scores_of(model, latest), examined),
        mean_ndcg(latest, dot_products(latest), examined),
        (len(train), len(validation), len(latest)),
        epochs,
    )


def scores_of(model: RankerModel, pages: Pages) -> FloatArray:
    """What the ranker says of each video of n pages: float64 [n, width]."""
    answers = [
        keras.ops.convert_to_numpy(model(_some(pages.inputs, slice(start, start + _BATCH))))
        for start in range(0, len(pages), _BATCH)
    ]
    return np.concatenate(answers).astype(np.float64)


def dot_products(pages: Pages) -> FloatArray:
    """What orders them without a ranker: float64 [n, width]."""
    return pages.inputs["features"][:, :, RANKING_FEATURES.index("affinity")].astype(np.float64)


class _Training(keras.Model):
    """A ranker with the biases of positions, which only training knows."""

    def __init__(self, ranker: RankerModel) -> None:
        super().__init__(name="training")
        self.ranker = ranker
        self.biases = self.add_weight(shape=(POSITIONS,), initializer="zeros", name="biases")

    def build(self, _input_shape: object) -> None:
        """The ranker is built."""
        self.built = True

    def call(self, batch: dict[str, Tensor], training: bool = False) -> Tensor:
        """float32 [n]: the cross entropy of each page."""
        biases = ops.take(_BIAS_SPEED * self.biases, batch["positions"], axis=0)
        logits = self.ranker(batch, training=training) + biases + MASKED * (1.0 - batch["mask"])
        chances = ops.log_softmax(logits, axis=-1)
        return -ops.sum(batch["targets"] * chances, axis=-1)

    def compute_loss(
        self,
        x: dict[str, Tensor] | None = None,
        y: Tensor | None = None,
        y_pred: Tensor | None = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        """The mean over the batch; biases that little speaks for stay small."""
        return ops.mean(y_pred) + _BIAS_PENALTY * ops.sum(ops.square(_BIAS_SPEED * self.biases))


def _train(training: _Training, train: Tensors, validation: Tensors, seed: int) -> int:
    """Until further passes make it no better; leaves the best weights, and says after how many passes."""
    rng, count = np.random.default_rng(seed), len(train["mask"])
    size = min(_BATCH, count)
    # What it begins as, the order of the dot product, may be the best.
    best, best_loss, best_epoch = _weights(training), _loss(training, validation), 0
    for epoch in range(1, _MOST_EPOCHS + 1):
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            training.train_on_batch(_some(train, order[start : start + size]))
        loss = _loss(training, validation)
        logger.info("pass %d: loss %.4f on later pages", epoch, loss)
        if loss < best_loss:
            best, best_loss, best_epoch = _weights(training), loss, epoch
        elif epoch >= best_epoch + _PATIENCE:
            break
    for variable, values in zip(training.trainable_variables, best, strict=True):
        variable.assign(values)
    return best_epoch


def _loss(training: _Training, batch: Tensors) -> float:
    parts = [
        keras.ops.convert_to_numpy(training(_some(batch, slice(start, start + _BATCH))))
        for start in range(0, len(batch["mask"]), _BATCH)
    ]
    return float(np.concatenate(parts).mean())


def _weights(training: _Training) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(each)) for each in training.trainable_variables]


def _batch(pages: Pages) -> Tensors:
    targets = pages.rewards / pages.rewards.sum(axis=1, keepdims=True)
    return pages.inputs | {
        "targets": targets.astype(np.float32),
        "positions": np.minimum(pages.positions, POSITIONS - 1).astype(np.int32),
    }


def _some(tensors: Tensors, rows: Any) -> Tensors:
    return {name: values[rows] for name, values in tensors.items()}


def _scale(model: RankerModel, pages: Pages) -> None:
    present = pages.mask > 0
    vectors: Float32Array = np.asarray(pages.inputs["video_vectors"], np.float32)
    users: Float32Array = np.asarray(pages.inputs["user_vector"], np.float32)
    model.features.fit(np.asarray(pages.inputs["features"][present], np.float32))
    model.products.fit((users[:, None] * vectors)[present])


def _examined(biases: Tensor) -> FloatArray:
    values = _BIAS_SPEED * np.asarray(keras.ops.convert_to_numpy(biases), np.float64)
    examined: FloatArray = np.clip(np.exp(values - values[0]), LEAST_EXAMINED, 1.0 / LEAST_EXAMINED)
    return examined
