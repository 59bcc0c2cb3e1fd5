"""The epochs: steps, validation, early stopping, and the best weights in the end."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from keek_training.backend import keras
from keek_training.bags import SetBatches
from keek_training.batches import Mixed
from keek_training.checkpoints import Checkpoints
from keek_training.devices import padded, spread_over
from keek_training.features import Float32Array
from keek_training.model import TwoTowers
from keek_training.trained import Epoch, Trained
from keek_training.validation import Quality, quality, serving_inputs
from keek_training.windows import Windows

log = logging.getLogger(__name__)

_VIDEO_BATCH: Final = 4096


def fit(trained: Trained, batches: Mixed | SetBatches, checkpoints: Checkpoints | None = None) -> None:
    """Runs the epochs; stops early when the validation has not got better for a while.

    Args:
        trained: Compiled; has the best weights in the end.
        batches: Of an epoch.
        checkpoints: Where each epoch is made safe, and what the training may go on from.

    Raises:
        SetupError: When it should go on from a checkpoint that is not there or is of another training.
    """
    model = trained.model
    trained.steps = len(batches)
    with spread_over(trained.config.devices):
        best = (checkpoints and checkpoints.restore(trained)) or _learnt(model)
    if not trained.config.epochs:
        trained.best = Epoch(0, 0.0, 0.0, _measured(trained))
    while not _is_done(trained):
        number = len(trained.history) + 1
        loss, train_s = _pass(trained, batches, number)
        with _averaged(trained):
            epoch = Epoch(number, loss, round(train_s, 2), _measured(trained))
            trained.history.append(epoch)
            if trained.best is None or _score(epoch) > _score(trained.best):
                trained.best, best = epoch, _learnt(model)
        log.info("%s", _told(trained, epoch))
        if checkpoints:
            checkpoints.save(trained, best)
    for variable, value in zip(model.learnt, best, strict=True):
        variable.assign(value)


def _is_done(trained: Trained) -> bool:
    """After the last pass, or when none has been better for a while."""
    behind, best = len(trained.history), trained.best
    if behind >= _passes(trained):
        return True
    if best is None or not trained.is_measured or behind - best.epoch < trained.config.patience:
        return False
    log.info("no better for %d epochs: training stops", trained.config.patience)
    return True


def _score(epoch: Epoch) -> float:
    """Without validation every epoch counts as better than the one before."""
    score = epoch.validation.get("ndcg@10", float(epoch.epoch))
    return score if math.isfinite(score) else -math.inf


def _learnt(model: TwoTowers) -> list[Any]:
    return [keras.ops.convert_to_numpy(variable) for variable in model.learnt]


def _passes(trained: Trained) -> int:
    """The most there are; without validation, as many as were best where there was one."""
    most, known = trained.config.epochs, trained.config.fit_epochs
    return most if known is None or trained.is_measured else min(most, known)


def _pass(trained: Trained, batches: Mixed | SetBatches, number: int) -> tuple[float, float]:
    """Makes an epoch's steps: their mean loss, and the seconds that they took."""
    started = time.monotonic()
    losses: list[float] = []
    title = f"epoch {number}/{_passes(trained)}"
    devices = trained.config.devices
    with spread_over(devices), tqdm(batches, title, leave=False, disable=None, unit="step") as bar:
        for batch in bar:
            losses.append(float(trained.model.train_on_batch(padded(batch, devices))))
            bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    return float(np.mean(losses)), time.monotonic() - started


@contextmanager
def _averaged(trained: Trained) -> Iterator[None]:
    """A scope in which the model has the moving averages of its weights, where it is to have them."""
    model = trained.model
    if not trained.config.average:
        yield
        return
    own = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    yield
    for variable, value in zip(model.trainable_variables, own, strict=True):
        variable.assign(value)


def _told(trained: Trained, epoch: Epoch) -> str:
    figures = "".join(f", {name} {value:.4f}" for name, value in epoch.validation.items())
    title = f"epoch {epoch.epoch}/{_passes(trained)}"
    return f"{title}: loss {epoch.loss:.4f}{figures}, {epoch.train_s:.1f} s"


def _measured(trained: Trained) -> dict[str, float]:
    if trained.measure is not None:
        return trained.measure(trained)
    return validate(trained).as_metrics() if trained.is_measured else {}


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
