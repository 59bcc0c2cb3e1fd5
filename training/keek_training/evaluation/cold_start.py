"""Users as if they were new: the same requests, under an id that nobody knows, with a history cut short.

What is measured is what a release makes of the first few things that somebody does. Training knows nothing
of this id; what the user did it knows under another, so that the videos' vectors were shaped by it. Baselines
have learnt from the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.features import hash_ids
from keek_training.evaluation.cases import Cases
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import Ranked
from keek_training.features import Int64Array, Sequences

LENGTHS: Final = (1, 3, 10)
"""Videos that are known of such a user."""
MOST_USERS: Final = 3000
"""Users that are asked for at each length, drawn where there are more."""

Ranker = Callable[[Cases], Ranked]


@dataclass(frozen=True, slots=True)
class ColdStart:
    """n users of whom `length` videos are known."""

    length: int
    cases: Cases
    rankings: Mapping[str, Ranked]
    whole: Mapping[str, Ranked]
    """Of the same users with all that is known of them."""


def cold_starts(
    cases: Cases, rankings: Mapping[str, Ranked], rankers: Mapping[str, Ranker], seed: int
) -> list[ColdStart]:
    """One for each length that anybody's history has.

    Args:
        cases: n requests.
        rankings: Of them, by name.
        rankers: Rank other requests in the same ways.
        seed: Draws the users.
    """
    rng = np.random.default_rng(seed)
    found = []
    for length in LENGTHS:
        rows = np.sort(rng.permutation(np.flatnonzero(cases.liked.lengths >= length))[:MOST_USERS])
        if len(rows):
            own = as_if_new(cases.take(rows), length)
            again = {name: ranker(own) for name, ranker in rankers.items()}
            found.append(
                ColdStart(length, own, again, {name: ranked[rows] for name, ranked in rankings.items()})
            )
    return found


def as_if_new(cases: Cases, length: int) -> Cases:
    """The same requests, from users who have never been seen.

    Known of each are the newest `length` videos that were not skipped, with everything but skips that the
    user did to them. What the user has truly met stays left out of rankings, so that nothing but the
    knowledge differs from the request that is cut.

    Args:
        cases: Of users with as many videos at least.
        length: At least 1.
    """
    names = _names(cases)
    liked = cases.liked.newest(length)
    return Cases(
        names,
        np.arange(len(names)),
        cases.now_us,
        cases.targets,
        _cut(cases, liked, names),
        cases.seen,
        liked,
        cases.training_counts,
        cases.is_new_video,
        cases.video_ids,
        cases.notes,
    )


def _names(cases: Cases) -> list[str]:
    """Ids that nobody has."""
    prefix = "as-if-new/"
    while any(own.startswith(prefix) for own in (*cases.known.user_ids, *cases.user_ids)):
        prefix += "/"
    return [f"{prefix}{own}" for own in cases.user_ids]


def _cut(cases: Cases, liked: Histories, names: list[str]) -> Sequences:
    """What the cases' users did to these videos."""
    known, videos = cases.known, liked.video_count
    counts = np.diff(known.offsets)[cases.users]
    ends = np.cumsum(counts)
    rows = np.arange(ends[-1]) + np.repeat(known.offsets[:-1][cases.users] - (ends - counts), counts)
    owners = np.repeat(np.arange(len(names)), counts)
    kept = np.isin(owners * videos + known.videos[rows], liked.users * videos + liked.videos)
    kept &= known.kinds[rows] != InteractionKind.SKIP
    rows, owners = rows[kept], owners[kept]
    offsets: Int64Array = np.searchsorted(owners, np.arange(len(names) + 1))
    return Sequences(
        user_ids=names,
        users=hash_ids(names),
        offsets=offsets,
        videos=known.videos[rows],
        kinds=known.kinds[rows],
        times_us=known.times_us[rows],
        weights=np.zeros(len(rows), np.float32),
    )
