"""The requests of an evaluation: one a user, with what is known of the user, and the targets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.errors import SetupError
from keek_server.towers.features import Int32Array
from keek_training.datasets.assemble import assemble
from keek_training.datasets.dataset import INTERACTION_SCHEMA, Dataset
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.targets import Targets
from keek_training.features import BoolArray, Int64Array, Sequences, catalogue_rows, user_sequences


@dataclass(frozen=True, slots=True)
class Counted:
    """Targets that count, of n cases: m pairs, ordered by case."""

    cases: Int64Array
    """int64 [m]: the case."""
    videos: Int32Array
    """int32 [m]: row in the catalogue, -1 where it lacks the video: a target that cannot be found."""

    def where(self, mask: BoolArray) -> "Counted":
        """Some of them."""
        return Counted(self.cases[mask], self.videos[mask])

    def per_case(self, count: int) -> Int64Array:
        """int64 [count]: how many each case has."""
        counts: Int64Array = np.bincount(self.cases, minlength=count).astype(np.int64)
        return counts


@dataclass(frozen=True, slots=True)
class Cases:
    """n requests; every one has a target."""

    user_ids: list[str]
    users: Int64Array
    """int64 [n]: the user in `known`, -1 for one of whom nothing is known."""
    now_us: Int64Array
    """int64 [n]: the moment of each request."""
    targets: Counted
    known: Sequences
    """All that is known of users when they ask."""
    seen: Histories
    """Of the n users: every video they are known to have met, in whatever way. Never recommended again."""
    liked: Histories
    """Of the n users: what they did not skip; what baselines start from."""
    training_counts: Int64Array
    """int64 [videos]: users that each video is known of from training, skips left out."""
    is_new_video: BoolArray
    """bool [videos]: training has not a single interaction with it."""
    video_ids: pa.StringArray
    """Of the catalogue, by row."""
    notes: Mapping[str, int]
    """What was left out or stands out, by name; see `cases_of`."""

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def is_new_user(self) -> BoolArray:
        """bool [n]: of whom nothing is known."""
        new: BoolArray = self.seen.lengths == 0
        return new

    def take(self, rows: Int64Array) -> "Cases":
        """Some of them: int64 [k], ascending."""
        place = np.full(len(self), -1, np.int64)
        place[rows] = np.arange(len(rows))
        own = self.targets.where(place[self.targets.cases] >= 0)
        return Cases(
            [self.user_ids[row] for row in rows],
            self.users[rows],
            self.now_us[rows],
            Counted(place[own.cases], own.videos),
            self.known,
            self.seen.take(rows),
            self.liked.take(rows),
            self.training_counts,
            self.is_new_video,
            self.video_ids,
            self.notes,
        )


def cases_of(training: Dataset, targets: Targets, history: pa.Table | None = None) -> Cases:
    """One request a user of the targets, who is asked for at the earliest of them.

    A target that the user has met before is none, since it is never recommended again; one that occurs
    twice counts once; one that is not in the catalogue counts as missed. Where targets have no times, a
    user asks at the moment of the newest interaction that is known, and one of whom nothing is known at
    the newest of all.

    Args:
        training: What was trained on: the catalogue, and what is known of users.
        targets: What they turned to.
        history: What else is known of them, INTERACTION_SCHEMA.

    Raises:
        SetupError: When no target is left.
    """
    video_ids = training.videos["video_id"].combine_chunks()
    known = user_sequences(_known(training, history), video_ids)
    trained = known if history is None else user_sequences(training.interactions, video_ids)
    encoded = targets.user_ids.dictionary_encode()
    user_ids: list[str] = encoded.dictionary.to_pylist()
    users = np.asarray(
        pc.fill_null(pc.index_in(encoded.dictionary, pa.array(known.user_ids, pa.string())), -1)
    ).astype(np.int64)
    counted, notes = _counted(encoded, targets, users, known, video_ids)
    now_us, leaks = _moments(encoded.indices.to_numpy(), targets, users, known)
    # Users whose targets are all known already ask for nothing.
    asking = np.unique(counted.cases)
    if not len(asking):
        raise SetupError("no target is left: the users have met all of them before")
    count, own = len(video_ids), users[asking]
    histories = Histories.of(known, count, with_skips=True)
    place = np.full(len(user_ids), -1, np.int64)
    place[asking] = np.arange(len(asking))
    return Cases(
        [user_ids[case] for case in asking],
        own,
        now_us[asking],
        Counted(place[counted.cases], counted.videos),
        known,
        histories.take(own),
        Histories.of(known, count).take(own),
        np.bincount(Histories.of(trained, count).videos, minlength=count).astype(np.int64),
        np.bincount(trained.videos, minlength=count) == 0,
        video_ids,
        notes | {"targets_before_known": leaks, "problems": len(targets.problems)},
    )


def _known(training: Dataset, history: pa.Table | None) -> pa.Table:
    own = training.interactions.select(INTERACTION_SCHEMA.names)
    if history is None:
        return own
    return assemble(training.name, training.videos, pa.concat_tables([own, history])).interactions


def _counted(
    encoded: pa.DictionaryArray,
    targets: Targets,
    users: Int64Array,
    known: Sequences,
    video_ids: pa.StringArray,
) -> tuple[Counted, dict[str, int]]:
    """The targets that count, by user of the targets, and what was left out."""
    cases = encoded.indices.to_numpy().astype(np.int64)
    names: Any = targets.video_ids.dictionary_encode()
    rows = catalogue_rows(pa.chunked_array([targets.video_ids]), video_ids)
    # By name, so that two unknown videos stay two.
    pairs = cases * len(names.dictionary) + names.indices.to_numpy()
    _, first = np.unique(pairs, return_index=True)
    counted = Counted(cases[first], rows[first])
    seen_pairs = np.repeat(np.arange(len(known.user_ids)), np.diff(known.offsets)) * len(video_ids)
    own_pairs = users[counted.cases] * len(video_ids) + counted.videos
    met = (users[counted.cases] >= 0) & (counted.videos >= 0) & np.isin(own_pairs, seen_pairs + known.videos)
    left = counted.where(~met)
    return left, {
        "targets_twice": len(cases) - len(first),
        "targets_seen": int(met.sum()),
        "targets_unknown": int((left.videos < 0).sum()),
    }


def _moments(
    cases: Int64Array, targets: Targets, users: Int64Array, known: Sequences
) -> tuple[Int64Array, int]:
    """When each user asks, and how many ask before something that is known of them happened."""
    newest = int(known.times_us.max()) if len(known) else 0
    last_us = np.full(len(users), newest, np.int64)
    has = users >= 0
    last_us[has] = known.times_us[known.offsets[users[has] + 1] - 1]
    if targets.times_us is None:
        return last_us, 0
    now_us = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(now_us, cases, targets.times_us)
    return now_us, int((has & (last_us > now_us)).sum())
