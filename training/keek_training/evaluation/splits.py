"""Splits of a data set into what is trained on and the targets that are held out of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.targets import Targets
from keek_training.features import BoolArray, Int64Array

_SEED: Final = 7
_NEARLY_ALL: Final = 0.95


@dataclass(frozen=True, slots=True)
class Split:
    """A data set in two parts; nothing of the targets is in the training."""

    name: str
    training: Dataset
    """With all videos, also those that the targets alone name."""
    targets: Targets


Splitter = Callable[[Dataset], Split]


def leave_last_out(dataset: Dataset) -> Split:
    """Each user's last target is the one that is held out, as the sequential benchmarks do it (Kang and
    McAuley, "Self-Attentive Sequential Recommendation", 2018).

    That is the last video that the user met for the first time and did not skip. What the user did from
    there on is held out as well. Users who did nothing before it have none.
    """
    first, users, _ = _first_meetings(dataset)
    last = np.full(int(users.max(initial=-1)) + 1, -1, np.int64)
    rows = np.flatnonzero(first)
    last[users[rows]] = rows  # the rows are in the order of time: the last one stays
    starts = np.full(len(last), len(users), np.int64)
    np.minimum.at(starts, users, np.arange(len(users)))
    held = last[(last >= 0) & (last > starts)]
    cut = np.full(len(last), len(users), np.int64)
    cut[users[held]] = held
    return _split("leave-last-out", dataset, np.arange(len(users)) < cut[users], np.sort(held))


def time_split(dataset: Dataset, at_us: int) -> Split:
    """Everything from one moment on is held out, for all users alike: nothing is learnt from a time that
    the targets lie behind (Ji et al., "A Critical Study on Data Leakage in Recommender System Offline
    Evaluation", 2023).

    Raises:
        SetupError: When nothing lies before that moment, or no target behind it.
    """
    first, _, _ = _first_meetings(dataset)
    before = dataset.interactions["event_time_us"].to_numpy() < at_us
    held = np.flatnonzero(first & ~before)
    if not before.any() or not len(held):
        raise SetupError(f"a split of {dataset.name} at {at_us} us leaves one of its parts empty")
    return _split("time", dataset, before, held)


def last_part(share: float) -> Splitter:
    """A `time_split` that holds out this share of the interactions, the newest."""
    return lambda dataset: time_split(
        dataset, int(np.quantile(dataset.interactions["event_time_us"].to_numpy(), 1 - share))
    )


def drawn_out(user_share: float) -> Splitter:
    """One video each of a share of the users, drawn by chance: for data without times.

    All that such a user did with the video is held out. Users who met but one have none.
    """

    def split(dataset: Dataset) -> Split:
        first, users, pairs = _first_meetings(dataset)
        rng = np.random.default_rng(_SEED)
        rows = rng.permutation(np.flatnonzero(first))
        drawn, places, counts = np.unique(users[rows], return_index=True, return_counts=True)
        able = np.flatnonzero(counts > 1)
        chosen = rng.permutation(able)[: round(user_share * len(drawn))]
        held = np.sort(rows[places[chosen]])
        return _split("drawn-out", dataset, ~np.isin(pairs, pairs[held]), held)

    return split


def tuning_split(dataset: Dataset, targets: Targets) -> Split:
    """A validation part of what was trained on, that asks as the targets do.

    Without times in the data a part of the users is drawn; where nearly all targets lie behind the data, its
    last fifth is held out; else each user's last target.
    """
    times_us = dataset.interactions["event_time_us"].to_numpy()
    if not len(times_us) or times_us[0] == times_us[-1]:
        return drawn_out(1 / 3)(dataset)
    if targets.times_us is not None and np.mean(targets.times_us > times_us[-1]) >= _NEARLY_ALL:
        return last_part(1 / 5)(dataset)
    return leave_last_out(dataset)


def _first_meetings(dataset: Dataset) -> tuple[BoolArray, Int64Array, Int64Array]:
    """The rows in which a user meets a video for the first time, without skipping it, bool [n]; and numbers
    of the users, and of the pairs of user and video, int64 [n] each."""
    rows = dataset.interactions
    users = _codes(rows["user_id"])
    videos = _codes(rows["video_id"])
    pairs = users * (int(videos.max(initial=0)) + 1) + videos
    first = np.zeros(len(users), np.bool_)
    first[np.unique(pairs, return_index=True)[1]] = True
    return first & (rows["kind"].to_numpy() != InteractionKind.SKIP), users, pairs


def _codes(column: pa.ChunkedArray) -> Int64Array:
    codes: Int64Array = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def _split(name: str, dataset: Dataset, kept: BoolArray, held: Int64Array) -> Split:
    rows = dataset.interactions.take(pa.array(held))
    targets = Targets(
        rows["user_id"].combine_chunks(),
        rows["video_id"].combine_chunks(),
        rows["event_time_us"].to_numpy(),
    )
    training = replace(dataset, interactions=dataset.interactions.filter(pa.array(kept)).combine_chunks())
    return Split(name, training, targets)
