"""Another split between personalised and trending, replayed from feeds that were served with some
exploration.

With exploration e a slot is, with probability e, drawn anew between the two sources; so each slot's source
was drawn by itself, with a probability that the log knows. Either source gives its next best video, so that
what a slot earns depends on how many slots before it the source had. Weights therefore are of the pair
(source, depth in the source): the probability of the depth under either policy is exact, by the sums of
independent draws (as marginalised importance weights, Xie, Ma and Wang, NeurIPS 2019). Earlier pages of a
session are taken as they were, and so is video exploration, where there was some."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.logs import BoolArray, Exposures, FloatArray, Int64Array
from keek_server.experiments.offpolicy import Predictions, Replay, replay
from keek_server.experiments.reward_model import FOLDS, cell_means, folds_of
from keek_server.feed.types import FeedSource

Layout = Callable[[float, int, int], Sequence[FeedSource]]
"""From the share of trending slots, the number of slots on earlier pages, and that of slots on this one: the
source that each of these is kept for. `feed.mixing` has it."""

_PERSONALISED, _TRENDING = 0, 1


@dataclass(frozen=True, slots=True)
class Split:
    """A target policy."""

    trending_share: float
    """Of the slots."""
    exploration: float = 0.0
    """The probability that a slot is drawn anew between the two sources."""


@dataclass(frozen=True, slots=True)
class _Slots:
    """All slots as a table of feeds by positions; cells without a slot are False in `exists`."""

    exists: BoolArray
    """[n, l]"""
    sources: Int64Array
    """[n, l]: _PERSONALISED or _TRENDING."""
    depths: Int64Array
    """[n, l]: how many slots before had the same source."""
    logged: FloatArray
    """[n, l]: with which probability the logged policy gave the slot to trending."""
    target: FloatArray
    """[n, l]: the same of the target."""


def replay_split(
    exposures: Exposures,
    rewards: FloatArray,
    split: Split,
    layout: Layout,
    *,
    by_depth: bool = True,
    alpha: float = 0.05,
) -> Replay:
    """What a split would have earned; see `offpolicy.replay` for what is returned.

    Feeds that were served without exploration say nothing of another split, and are left out whole, since the
    slots on which two splits agree are not like the others. So are slots that another source had to fill.

    Args:
        exposures: Of one arm, or of several: each slot's propensity is its own.
        rewards: float64 [m], as of `totals.slot_rewards`.
        split: The target.
        layout: Of the slots.
        by_depth: Weighs the depth in the source, too. Without, the variance is less, and what a source's
        later
            videos earn is taken to be what its earlier ones do.
        alpha: Intervals hold with probability 1 - alpha.

    Raises:
        FailedPreconditionError: When no slot can be replayed.
        InvalidArgumentError: When a share does not lie in [0, 1], or the rewards do not fit.
    """
    for name in ("trending_share", "exploration"):
        if not 0.0 <= getattr(split, name) <= 1.0:
            raise InvalidArgumentError.of(f"split.{name}", "must lie in [0, 1]")
    if len(rewards) != len(exposures.videos):
        raise InvalidArgumentError.of("rewards", "must be as many as slots")
    known = _known(exposures)
    explored = known & (exposures.source_propensities < 1.0)
    feeds, positions = exposures.feeds, exposures.positions
    # A known slot without another choice: its feed was served without exploration.
    fixed = np.bincount(feeds[known & ~explored], minlength=len(exposures)) > 0
    usable = explored & ~fixed[feeds]
    slots = _slots(exposures, known, split, layout)
    logged, target = _probabilities(slots, by_depth=by_depth)
    predictions = _predictions(exposures, slots, rewards, usable, by_depth=by_depth)
    return replay(
        exposures.users[feeds],
        rewards,
        logged[feeds, positions],
        target[feeds, positions],
        predictions=predictions,
        usable=usable,
        alpha=alpha,
    )


def _known(exposures: Exposures) -> BoolArray:
    """Slots that were drawn between the two sources, with a known probability."""
    drawn = np.isin(exposures.sources, (FeedSource.PERSONALISED, FeedSource.TRENDING))
    return drawn & np.isfinite(exposures.source_propensities)


def _slots(exposures: Exposures, known: BoolArray, split: Split, layout: Layout) -> _Slots:
    feeds, positions = exposures.feeds, exposures.positions
    shape = len(exposures), int(np.diff(exposures.offsets).max(initial=0))
    exists = np.zeros(shape, np.bool_)
    exists[feeds, positions] = True
    is_trending = exposures.sources == FeedSource.TRENDING
    sources = np.zeros(shape, np.int64)
    sources[feeds, positions] = is_trending
    own = exposures.source_propensities.astype(np.float64)
    # What another source had to fill stays what it is under either policy.
    logged = np.where(known, np.where(is_trending, own, 1.0 - own), is_trending)
    wanted = np.where(known, _wanted(exposures, split, layout), is_trending)
    earlier = np.zeros((2, *shape), np.int64)
    earlier[_TRENDING, :, 1:] = np.cumsum(sources, axis=1)[:, :-1]
    earlier[_PERSONALISED] = np.arange(shape[1]) - earlier[_TRENDING]
    tables = np.zeros((2, *shape))
    tables[0, feeds, positions], tables[1, feeds, positions] = logged, wanted
    depths = np.take_along_axis(earlier, sources[None], axis=0)[0]
    return _Slots(exists, sources, depths, tables[0], tables[1])


def _wanted(exposures: Exposures, split: Split, layout: Layout) -> FloatArray:
    """[m]: with which probability the target gives each slot to trending."""
    counts = np.diff(exposures.offsets)
    pages, which = np.unique(np.stack([exposures.firsts, counts]), axis=1, return_inverse=True)
    feeds, positions = exposures.feeds, exposures.positions
    of_slot = which.reshape(-1)[feeds]
    table = np.zeros((pages.shape[1], int(counts.max(initial=0))))
    for page, (first, count) in enumerate(pages.T.tolist()):
        kept_for = layout(split.trending_share, first, count)
        table[page, :count] = [source == FeedSource.TRENDING for source in kept_for]
    wanted: FloatArray = (1.0 - split.exploration) * table[of_slot, positions] + split.exploration / 2
    return wanted


def _probabilities(slots: _Slots, *, by_depth: bool) -> tuple[FloatArray, FloatArray]:
    """[n, l] each: with which probability each policy shows what the slot shows."""
    found = []
    for trending in (slots.logged, slots.target):
        probability = np.where(slots.sources == _TRENDING, trending, 1.0 - trending)
        if by_depth:
            places = np.arange(slots.sources.shape[1])
            of_trending = np.where(slots.sources == _TRENDING, slots.depths, places - slots.depths)
            for place, before in enumerate(_trending_before(trending)):
                probability[:, place] *= np.take_along_axis(before, of_trending[:, place, None], axis=1)[:, 0]
        found.append(probability)
    return found[0], found[1]


def _trending_before(trending: FloatArray) -> Iterator[FloatArray]:
    """For each position, [n, l + 1]: the probability that so many slots before it went to trending."""
    count, length = trending.shape
    before = np.zeros((count, length + 1))
    before[:, 0] = 1.0
    for place in range(length):
        yield before
        own = trending[:, place, None]
        after = before * (1.0 - own)
        after[:, 1:] += before[:, :-1] * own
        before = after


def _predictions(
    exposures: Exposures, slots: _Slots, rewards: FloatArray, usable: BoolArray, *, by_depth: bool
) -> Predictions:
    """Mean rewards by source, position and depth, of the users of other folds."""
    feeds, positions = exposures.feeds, exposures.positions
    length = slots.sources.shape[1]
    folds = folds_of(exposures.users)
    depths = slots.depths if by_depth else np.zeros_like(slots.depths)
    table = cell_means(
        (folds[feeds], slots.sources[feeds, positions], positions, depths[feeds, positions]),
        (FOLDS, 2, length, length),
        rewards,
        usable,
    )
    shown = table[folds[feeds], slots.sources[feeds, positions], positions, depths[feeds, positions]]
    target = np.zeros(slots.sources.shape)
    for place, before in enumerate(_trending_before(slots.target)):
        deep = np.arange(place + 1)
        trending, personalised = (
            (table[folds, _TRENDING, place][:, deep], table[folds, _PERSONALISED, place][:, place - deep])
            if by_depth
            else (table[folds, own, place, :1] for own in (_TRENDING, _PERSONALISED))
        )
        own = slots.target[:, place, None]
        mixed = before[:, : place + 1] * (own * trending + (1.0 - own) * personalised)
        target[:, place] = mixed.sum(axis=1)
    return Predictions(target[feeds, positions], shown)
