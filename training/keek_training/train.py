"""Trains both towers on a data set."""

import logging
import time
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from keek_server.errors import SetupError
from keek_training.backend import keras
from keek_training.bags import SetBatches
from keek_training.batches import Batches, Mixed, Negatives
from keek_training.checkpoints import Checkpoints
from keek_training.config import TowerConfig, TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.devices import set_precision, spread_over
from keek_training.factors import begin
from keek_training.features import (
    Catalogue,
    Float32Array,
    Int64Array,
    Sequences,
    catalogue_of,
    sequences_of,
)
from keek_training.fine_tuning import learn_ids, load_towers, telling_owners, with_replay
from keek_training.fit import fit, validate
from keek_training.model import TwoTowers
from keek_training.optimiser import compile_model
from keek_training.runs import Run
from keek_training.trained import Measure, Trained
from keek_training.validation import popular, quality, target_counts
from keek_training.windows import Split, Windows, split

log = logging.getLogger(__name__)

_FEWEST_BUCKETS: Final = 64
# Beyond this the optimiser, which updates every row at every step, would take most of the time.
_MOST_BUCKETS: Final = 1 << 16
_STEPS_WANTED: Final = 256
_SMALLEST_BATCH: Final = 32
_LARGEST_BATCH: Final = 128


def train(
    dataset: Dataset,
    config: TrainConfig,
    base: Run | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    measure: Measure | None = None,
) -> Trained:
    """Trains until the validation no longer gets better, and keeps the best weights.

    Args:
        dataset: Videos and interactions; a column IS_NEW says what a fine-tuning is about.
        config: Table sizes and the longest age are filled in from the data where unset.
        base: The trained run whose weights training starts from, and whose towers `config` has.
        checkpoints: Where each epoch is made safe, and what the training may go on from.
        measure: Tells after each epoch how good the model is, in the place of what is held out.

    Raises:
        SetupError: When nobody did anything that could be a target.
    """
    started = time.monotonic()
    keras.utils.set_random_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    catalogue = catalogue_of(dataset)
    sequences = sequences_of(dataset, catalogue, config.kind_weights)
    if not sequences.weights.any():
        raise SetupError(f"{dataset.name} holds no interaction to train on, such as a view or a like")
    towers = fitted_towers(config.towers, dataset, sequences)
    config = config.model_copy(update={"towers": towers})
    parts = split(sequences, towers.history_length, _validation_users(config, sequences), rng, config.overlap)
    if sequences.is_new is not None:
        chosen = with_replay(sequences, parts.training, config.fine_tuning.replay, rng)
        parts = replace(parts, training=chosen)
    counts = target_counts(sequences, parts.training, len(catalogue), towers.history_length)
    batches = _batches(config, sequences, parts, counts, rng)
    with spread_over(config.devices):
        spare_read = config.set_targets is not None and config.set_targets.spare_read
        model = TwoTowers(towers, catalogue.features, config.seed, config.softmax_precision, spare_read)
        set_precision(model.user_tower.blocks, config.attention_precision)
        model(next(iter(batches)))  # makes the weights
    trained = Trained(config, model, catalogue, sequences, parts, rng, measure)
    if base is None:
        _remember(model, config.towers, catalogue, sequences, counts)
        if config.factors is not None:
            begin(model, config, catalogue, sequences, _stops(sequences, parts))
    else:
        load_towers(model, base)
        trained.metrics.update(learn_ids(model, towers, catalogue, sequences, counts))
        if len(parts.validation):
            trained.metrics.update(validate(trained).as_metrics("base_"))
    with spread_over(config.devices):
        compile_model(model, config, len(batches))
    fit(trained, batches, checkpoints)
    trained.metrics.update(_metrics(trained, counts), train_s=round(time.monotonic() - started, 1))
    return trained


def _batches(
    config: TrainConfig,
    sequences: Sequences,
    parts: Split,
    counts: Float32Array,
    rng: np.random.Generator,
) -> Mixed | SetBatches:
    """The steps of an epoch, as the configuration wants them."""
    # A fine-tuning is about some windows alone.
    if config.set_targets is not None and sequences.is_new is None:
        return SetBatches(
            sequences,
            _stops(sequences, parts),
            length=config.towers.history_length,
            batch_size=config.batch_size or _batch_size(len(parts.training)),
            options=config.set_targets,
            rng=rng,
        )
    negatives = Negatives(counts, config.negatives) if len(counts) > config.full_softmax_below else None
    return batches_of(config, sequences, parts.training, negatives, rng)


def _stops(sequences: Sequences, parts: Split) -> Int64Array:
    """int64 [users]: rows from there on are held out."""
    stops = sequences.offsets[1:].copy()
    stops[parts.validation.users] = parts.validation.ends
    return stops


def fitted_towers(towers: TowerConfig, dataset: Dataset, sequences: Sequences) -> TowerConfig:
    """The configuration with what is left to the data: table sizes and the longest age."""
    videos = dataset.videos
    times_us = sequences.times_us
    sizes = {
        "video_buckets": _buckets(2 * videos.num_rows),
        "owner_buckets": _buckets(2 * len(videos["owner_id"].unique())),
        "tag_buckets": _buckets(8 * len(videos["tags"].combine_chunks().flatten().unique())),
        "user_buckets": _buckets(len(sequences.user_ids) if towers.user_dropout < 1 else 0),
        "longest_age_s": max(1.0, float(times_us.max() - times_us.min()) / 1e6),
    }
    return towers.model_copy(update={k: v for k, v in sizes.items() if getattr(towers, k) is None})


def _buckets(wanted: int) -> int:
    """The next power of two, within bounds."""
    return min(max(1 << max(0, wanted - 1).bit_length(), _FEWEST_BUCKETS), _MOST_BUCKETS)


def _validation_users(config: TrainConfig, sequences: Sequences) -> int:
    if config.base is None:
        return config.validation_users
    share = int(config.fine_tuning.validation_share * len(sequences.user_ids))
    return min(config.validation_users, share)


def batches_of(
    config: TrainConfig,
    sequences: Sequences,
    windows: Windows,
    negatives: Negatives | None,
    rng: np.random.Generator,
) -> Mixed:
    """Windows by the shortest of the padded lengths that holds each, in batches of as many positions."""
    longest = config.towers.history_length
    size = config.batch_size or _batch_size(len(windows))
    # The request before a user's first interaction has a position, too.
    rows = windows.ends - windows.starts + 1
    parts, least = [], np.inf
    for halved in range(config.padded_lengths):
        length = max(1, longest >> halved)
        shorter = longest >> (halved + 1) if halved + 1 < config.padded_lengths else -1
        own = np.flatnonzero((rows <= least) & (rows > shorter))
        least = shorter
        if len(own):
            parts.append(
                Batches(
                    sequences,
                    windows.take(own),
                    length=length,
                    batch_size=size << halved,
                    negatives=negatives,
                    rng=rng,
                )
            )
    return Mixed(parts, rng)


def _batch_size(windows: int) -> int:
    return min(max(windows // _STEPS_WANTED, _SMALLEST_BATCH), _LARGEST_BATCH)


def _remember(
    model: TwoTowers,
    towers: TowerConfig,
    catalogue: Catalogue,
    sequences: Sequences,
    counts: Float32Array,
) -> None:
    """Tells the towers which ids training says something about, and what clip vectors are like."""
    features = catalogue.features
    model.video_tower.standardise.fit(features["clip_vector"])
    model.video_tower.ids.remember(features["video"][counts > 0])
    model.video_tower.owners.remember(telling_owners(catalogue))
    if towers.user_dropout < 1:
        model.user_tower.ids.remember(sequences.users)


def _metrics(trained: Trained, counts: Float32Array) -> dict[str, Any]:
    """What metrics.json says of the model, and of the popular list on the same requests."""
    metrics: dict[str, Any] = {"steps_per_epoch": trained.steps, "windows": len(trained.parts.training)}
    if not len(trained.parts.validation):
        return metrics
    assert trained.best is not None
    baseline = quality(trained.sequences, trained.parts.validation, popular(counts))
    metrics |= trained.best.validation | baseline.as_metrics("popular_")
    metrics |= {"best_epoch": trained.best.epoch, "validation_users": len(trained.parts.validation)}
    log.info("the best epoch: %s", asdict(trained.best))
    return metrics
