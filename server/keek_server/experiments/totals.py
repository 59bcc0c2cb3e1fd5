"""What each user of an experiment did, in sums: the units that everything is concluded from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.attribution import Attribution, attribute
from keek_server.experiments.logs import (
    BoolArray,
    Exposures,
    FloatArray,
    Int16Array,
    Int64Array,
    Interactions,
)
from keek_server.interactions.kinds import InteractionKind

DEFAULT_WEIGHTS: Final[Mapping[InteractionKind, float]] = {
    InteractionKind.LIKE: 1.0,
    InteractionKind.SAVE: 2.0,
    InteractionKind.SHARE: 2.0,
    InteractionKind.VIEW: 0.1,
}
"""What each kind counts in the north star: as in trending by default (`Settings.interaction_weights`), so
that a feed is measured by what trending is ordered by. A kind that is not named weighs nothing."""

COUNTS: Final = {
    InteractionKind.VIEW: "views",
    InteractionKind.LIKE: "likes",
    InteractionKind.SAVE: "saves",
    InteractionKind.SHARE: "shares",
    InteractionKind.SKIP: "skips",
}
"""How the sums of each kind are called."""

Sums = Mapping[str, FloatArray]
"""[u] each: `users` (ones), `feeds`, `slots`, the names of COUNTS, `answers` (views and skips),
`north_star` (the weighted sum of all kinds), and, where both are known, `watched_s` (the seconds that
videos were watched, of each at most its duration: a loop counts once) and `watchable_s` (their durations)."""


@dataclass(frozen=True, slots=True)
class UserTotals:
    """The u users of an experiment, each with the arm that they saw first."""

    users: Int64Array
    """[u]: codes, rising."""
    arms: Int16Array
    """[u]"""
    sums: Sums
    """Since the start, of the feeds of that arm and of what they caused."""
    before: Sums
    """The same before the start, of any feed, caused by one or not: what CUPED corrects by."""
    moved_count: int
    """Users who also saw another arm later, as when weights change; those feeds are left out."""


def user_totals(
    exposures: Exposures,
    interactions: Interactions,
    *,
    start_us: int,
    window_us: int,
    since_us: int | None = None,
    weights: Mapping[InteractionKind, float] = DEFAULT_WEIGHTS,
) -> UserTotals:
    """Sums by user.

    A kind counts once per slot: who likes a video twice has liked it. Of several times that a slot's video
    was watched the longest counts. In an arm of which no such time is known, `watched_s` is NaN: unknown is
    not nothing. The unit is the user in the arm seen first, so that a comparison stays one of random groups.

    Args:
        exposures: Of the experiment, and, where there are any, of the same users before its start.
        interactions: Of the same time.
        start_us: When the experiment began; feeds before count as the time before, whatever their arm.
        window_us: How long after a feed it may have caused an interaction.
        since_us: When the arms got their weights of now, where that was later than the start; feeds from
        before
            are left out. Else an arm that grew would have more users of whom only a short time is known, and
            one that shrank has lost those who came back.
        weights: Of kinds in the north star.

    Raises:
        InvalidArgumentError: When a weight is negative or not finite, or the window is negative.
    """
    if not all(np.isfinite(weight) and weight >= 0.0 for weight in weights.values()):
        raise InvalidArgumentError.of("weights", "must be finite and not negative")
    first_us = start_us if since_us is None else max(start_us, since_us)
    taking_part = (exposures.times_us >= first_us) & (exposures.arms >= 0)
    users, arms = _first_arms(exposures, taking_part)
    places = _places(users, exposures.users)
    in_arm = taking_part & (places >= 0) & (exposures.arms == arms[places] if len(users) else False)
    moved = np.unique(exposures.users[taking_part & ~in_arm])
    found = attribute(exposures, interactions, window_us)
    sums = _feed_sums(exposures, places, in_arm, len(users))
    _add_kinds(sums, *_caused(exposures, interactions, found, places, in_arm), weights)
    _add_watched(sums, *_watched_slots(exposures, interactions, found, places, in_arm))
    in_arms = np.bincount(arms, sums["watchable_s"])
    sums["watched_s"][in_arms[arms] == 0.0] = np.nan
    earlier = (exposures.times_us < start_us) & (places >= 0)
    before = _feed_sums(exposures, places, earlier, len(users))
    own = _places(users, interactions.users)
    kept = (own >= 0) & (interactions.times_us < start_us)
    _add_kinds(before, own[kept], interactions.kinds[kept].astype(np.int64), weights)
    seconds = _seconds(interactions)
    timed = kept & ~np.isnan(seconds)
    _add_watched(before, own[timed], seconds[timed], interactions.durations_s[timed])
    return UserTotals(users, arms, sums, before, len(moved))


def slot_rewards(
    exposures: Exposures,
    interactions: Interactions,
    window_us: int,
    weights: Mapping[InteractionKind, float] = DEFAULT_WEIGHTS,
) -> FloatArray:
    """float64 [m]: what each slot earned, by the weights of the kinds that it caused; a kind once."""
    found = attribute(exposures, interactions, window_us)
    slots, kinds = _distinct(found, interactions)
    return np.bincount(slots, _weight_of(weights)[kinds], minlength=len(exposures.videos)).astype(np.float64)


def _first_arms(exposures: Exposures, taking_part: BoolArray) -> tuple[Int64Array, Int16Array]:
    feeds = np.flatnonzero(taking_part)
    in_time = feeds[np.argsort(exposures.times_us[feeds], kind="stable")]
    users, first = np.unique(exposures.users[in_time], return_index=True)
    return users, exposures.arms[in_time[first]]


def _places(users: Int64Array, codes: Int64Array) -> Int64Array:
    """Where each code stands among `users`, which are sorted; -1 where it does not."""
    if not len(users):
        return np.full(len(codes), -1, np.int64)
    places = np.minimum(np.searchsorted(users, codes), len(users) - 1)
    return np.where(users[places] == codes, places, -1)


def _feed_sums(
    exposures: Exposures, places: Int64Array, kept: BoolArray, count: int
) -> dict[str, FloatArray]:
    own = places[kept]
    return {
        "users": np.ones(count),
        "feeds": np.bincount(own, minlength=count).astype(np.float64),
        "slots": np.bincount(own, np.diff(exposures.offsets)[kept], minlength=count).astype(np.float64),
    }


def _distinct(found: Attribution, interactions: Interactions) -> tuple[Int64Array, Int64Array]:
    """Slots and kinds, each pair once."""
    known = found.slots >= 0
    base = max(InteractionKind) + 1
    pairs = np.unique(found.slots[known] * base + interactions.kinds[known])
    return pairs // base, pairs % base


def _caused(
    exposures: Exposures,
    interactions: Interactions,
    found: Attribution,
    places: Int64Array,
    in_arm: BoolArray,
) -> tuple[Int64Array, Int64Array]:
    """The users, by place, and the kinds of what feeds of the experiment caused."""
    slots, kinds = _distinct(found, interactions)
    feeds = exposures.feeds[slots]
    kept = in_arm[feeds]
    return places[feeds[kept]], kinds[kept]


def _add_kinds(
    sums: dict[str, FloatArray],
    places: Int64Array,
    kinds: Int64Array,
    weights: Mapping[InteractionKind, float],
) -> None:
    count = len(sums["users"])
    for kind, name in COUNTS.items():
        sums[name] = np.bincount(places[kinds == kind], minlength=count).astype(np.float64)
    sums["answers"] = sums["views"] + sums["skips"]
    sums["north_star"] = np.bincount(places, _weight_of(weights)[kinds], minlength=count).astype(np.float64)


def _seconds(interactions: Interactions) -> FloatArray:
    """float64 [k]: how much of the video was watched, at most all of it; NaN where that is not known."""
    return np.minimum(interactions.watched_s, interactions.durations_s)


def _watched_slots(
    exposures: Exposures,
    interactions: Interactions,
    found: Attribution,
    places: Int64Array,
    in_arm: BoolArray,
) -> tuple[Int64Array, FloatArray, FloatArray]:
    """The users, by place, the seconds watched and the durations of slots whose video was watched for a known
    time."""
    seconds = _seconds(interactions)
    timed = np.flatnonzero((found.slots >= 0) & ~np.isnan(seconds))
    # The longest time of each slot is the last one.
    timed = timed[np.lexsort((seconds[timed], found.slots[timed]))]
    slots = found.slots[timed]
    is_last = np.append(slots[1:] != slots[:-1], True)[: len(slots)]
    feeds = exposures.feeds[slots]
    kept = is_last & in_arm[feeds]
    own = timed[kept]
    return places[feeds[kept]], seconds[own], interactions.durations_s[own]


def _add_watched(
    sums: dict[str, FloatArray], places: Int64Array, seconds: FloatArray, durations_s: FloatArray
) -> None:
    count = len(sums["users"])
    for name, values in (("watched_s", seconds), ("watchable_s", durations_s)):
        sums[name] = np.bincount(places, values, minlength=count).astype(np.float64)


def _weight_of(weights: Mapping[InteractionKind, float]) -> FloatArray:
    by_kind = np.zeros(max(InteractionKind) + 1)
    for kind, weight in weights.items():
        by_kind[kind] = weight
    return by_kind
