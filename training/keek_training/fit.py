"""The epochs: steps, validation, early stopping, and the best weights in the end."""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from keek_training.backend import keras
from keek_training.batches import Batches
from keek_training.config import TrainConfig
from keek_training.features import Catalogue, Float32Array, Sequences
from keek_training.model import TwoTowers
from keek_training.validation import Quality, quality, serving_inputs
from keek_training.windows import Split, Windows

log = logging.getLogger(__name__)

_VIDEO_BATCH: Final = 4096
_WARM_UP_SHARE: Final = 0.1
_LAST_RATE_SHARE: Final = 0.05
_GRADIENT_NORM: Final = 1.0
# Weight decay pulls towards zero what only some steps touch, and scales: not these.
_NO_DECAY: Final = ("table", "unknown", "bias", "gamma", "beta", "embeddings")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One entry of history.json."""

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over the steps, dropout and hidden ids included."""
    train_s: float
    validation: dict[str, float]
    """Empty when nothing is held out."""


@dataclass(slots=True)
class Trained:
    """A model in training, with all that it is trained and measured on."""

    config: TrainConfig
    model: TwoTowers
    catalogue: Catalogue
    sequences: Sequences
    parts: Split
    steps: int = 0
    """An epoch's."""
    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    """The epoch whose weights the model has in the end; the last when nothing is held out."""
    metrics: dict[str, Any] = field(default_factory=dict)


def compile_model(model: TwoTowers, config: TrainConfig, steps: int) -> None:
    """Gives the model its optimiser: AdamW, warmed up over a part of the first epoch's steps."""
    warm_up = max(1, int(_WARM_UP_SHARE * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps * config.epochs - warm_up),
        alpha=_LAST_RATE_SHARE,
        warmup_target=config.learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=_GRADIENT_NORM)
    optimizer.exclude_from_weight_decay(var_names=list(_NO_DECAY))
    model.compile(optimizer=optimizer, loss=None, jit_compile=config.jit)


def fit(trained: Trained, batches: Batches) -> None:
    """Runs the epochs; stops early when the validation has not got better for a while."""
    config, model = trained.config, trained.model
    trained.steps = len(batches)
    best_score, best_weights = -math.inf, model.get_weights()
    for number in range(1, _passes(trained) + 1):
        epoch = _epoch(trained, batches, number)
        trained.history.append(epoch)
        # Without validation every epoch counts as better than the one before.
        score = epoch.validation.get("ndcg@10", float(number))
        if score > best_score:
            best_score, trained.best, best_weights = score, epoch, model.get_weights()
        elif trained.best and number - trained.best.epoch >= config.patience:
            log.info("no better for %d epochs: training stops", config.patience)
            break
    model.set_weights(best_weights)


def _passes(trained: Trained) -> int:
    """The most there are; without validation, as many as were best where there was one."""
    most, known = trained.config.epochs, trained.config.fit_epochs
    return most if known is None or len(trained.parts.validation) else min(most, known)


def _epoch(trained: Trained, batches: Batches, number: int) -> Epoch:
    started = time.monotonic()
    losses: list[float] = []
    title = f"epoch {number}/{_passes(trained)}"
    with tqdm(batches, title, leave=False, disable=None, unit="step") as bar:
        for batch in bar:
            losses.append(float(trained.model.train_on_batch(batch)))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    train_s = time.monotonic() - started
    validation = validate(trained).as_metrics() if len(trained.parts.validation) else {}
    figures = "".join(f", {name} {value:.4f}" for name, value in validation.items())
    loss = float(np.mean(losses))
    log.info("%s: loss %.4f%s, %.1f s", title, loss, figures, train_s)
    return Epoch(number, loss, round(train_s, 2), validation)


def validate(trained: Trained) -> Quality:
    """Quality over the held-out requests, through the towers as they are served."""
    vectors = video_vectors(trained)
    length = trained.config.towers.history_length

    def score(requests: Windows) -> Float32Array:
        inputs = serving_inputs(trained.sequences, requests, vectors, length)
        users: Float32Array = trained.model.user_tower.predict_on_batch(inputs)
        return users @ vectors.T

    return quality(trained.sequences, trained.parts.validation, score)


def video_vectors(trained: Trained) -> Float32Array:
    """float32 [videos, DIMENSION], as served."""
    vectors: Float32Array = trained.model.video_tower.predict(
        trained.catalogue.features, batch_size=_VIDEO_BATCH, verbose=0
    )
    return vectors
