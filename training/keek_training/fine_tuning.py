"""Training on from a run: its weights, what is new to it, and a replay of what is not."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError
from keek_training.config import TowerConfig, TrainConfig
from keek_training.features import Catalogue, Float32Array, Sequences
from keek_training.model import TwoTowers
from keek_training.runs import Run
from keek_training.weights import load_weights
from keek_training.windows import Windows


def fine_tuning_config(base: Run, config: TrainConfig | None = None) -> TrainConfig:
    """The configuration that trains on from a run.

    Args:
        base: A trained run.
        config: Its own by default. The towers are the base's in any case: their tables have their sizes.

    Raises:
        SetupError: When the run is not trained.
    """
    base.read_metrics()
    own = TrainConfig.load(base.config)
    return (config or own).from_base(base.name, own.towers)


def load_towers(model: TwoTowers, base: Run) -> None:
    """Reads a run's weights into a model that was built with its towers' configuration.

    Raises:
        SetupError: When they are other towers' weights.
    """
    for tower in (model.user_tower, model.video_tower):
        load_weights(tower, base.weights(tower.name))


def learn_ids(
    model: TwoTowers,
    towers: TowerConfig,
    catalogue: Catalogue,
    sequences: Sequences,
    counts: Float32Array,
) -> dict[str, Any]:
    """Tells the towers which ids they did not know this training says something about.

    The clip vectors' mean and scale stay the base's: its weights were trained behind them.

    Returns:
        How many are new, for the metrics.
    """
    features, videos = catalogue.features, model.video_tower
    if not videos.standardise.is_fitted:
        videos.standardise.fit(features["clip_vector"])
    return {
        "new_videos": videos.ids.learn(features["video"][counts > 0]),
        "new_owners": videos.owners.learn(telling_owners(catalogue)),
        "new_users": model.user_tower.ids.learn(sequences.users) if towers.user_dropout < 1 else 0,
    }


def telling_owners(catalogue: Catalogue) -> npt.NDArray[np.generic]:
    """Hashes of the owners that say something: int32 [n, 2].

    An owner of one video says nothing that the video's id does not, and would take over from it.
    """
    owners = catalogue.features["owner"]
    _, first, owned = np.unique(owners[:, 0], return_index=True, return_counts=True)
    return owners[first[owned > 1]]


def with_replay(sequences: Sequences, windows: Windows, replay: float, rng: np.random.Generator) -> Windows:
    """The windows that train something new, and some of the others.

    Args:
        sequences: Say which rows are new.
        windows: All.
        replay: How many others there are for each; fewer where there are not so many.
        rng: Draws them, evenly.

    Raises:
        SetupError: When no window trains anything new.
    """
    assert sequences.is_new is not None
    targets = np.concatenate([[0], np.cumsum(sequences.is_new & (sequences.weights > 0))])
    is_new = targets[windows.ends + 1] > targets[windows.trained_after + 1]
    new, old = np.flatnonzero(is_new), np.flatnonzero(~is_new)
    if not len(new):
        raise SetupError("nothing that is new can be a target: each is a repetition, a skip, or held out")
    drawn = rng.permutation(old)[: math.ceil(replay * len(new))]
    return windows.take(np.sort(np.concatenate([new, drawn])))
