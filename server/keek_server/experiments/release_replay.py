"""Another release, replayed from feeds whose personalised videos were drawn with some chance.

With video exploration v, a personalised slot shows the best video that is left, or with probability v one of
the n best, each as likely: the log knows how likely each was in its slot, given what was placed before. The
target's page is the set of its best videos for as many slots. In each slot, given what was placed before it,
the target is taken to show

- the logged release's best, where the target has it on its page as well: it would not come again, and
- else one of the target's videos that the logged release would not reach on this page, each as likely.

So each video of the target's page is asked about once, or about so, whatever it has in common with the logged
one, and with weights of about 1 for what both show. What comes out is what the target's videos earn, each by
itself: a video is taken to earn the same whatever stands beside it, and about the same in a slot nearby, as
in the click models that Li et al. evaluate rankings with ("Offline Evaluation of Ranking Policies with Click
Models", KDD 2018). Weights are those of the one draw that they stand for, given the page up to there, and no
products over a page. The bias: in which order the target shows its videos is not seen; and of its videos, the
few that were drawn by chance in another slot before their turn are replaced by its next.

Videos that the log could not have shown there are left out of the target's choices (`ReleaseReplay.support`
says how many could be shown), and slots with none that could."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keek_server.errors import FailedPreconditionError, InvalidArgumentError
from keek_server.experiments.logs import BoolArray, Exposures, FloatArray, Int64Array, Pool
from keek_server.experiments.offpolicy import Predictions, Replay, replay
from keek_server.experiments.reward_model import FOLDS, cell_means, folds_of
from keek_server.feed.drawing import VIDEO_POOL
from keek_server.feed.types import FeedSource

Choices = Sequence[int]
"""Codes of the videos that the target would show in the personalised slots of one feed, best first: at least
as many as there are such slots, if it has them. -1 is one that the log does not know."""


@dataclass(frozen=True, slots=True)
class ReleaseReplay:
    """A target release."""

    replay: Replay
    """Of personalised slots alone."""
    support: float
    """Share of the target's choices that the log could have shown."""
    differing_share: float
    """Of the slots, those where the target shows what the logged release does not."""
    feed_count: int
    """Feeds that were used."""


class _Slot(NamedTuple):
    """What the target would do in one slot."""

    position: int
    rank: int
    """Of the video shown, among those that could be."""
    is_chosen: bool
    """Whether the video shown is one of the target's."""
    wanted_count: int
    ranks: list[int]
    """Of the target's choices that could be shown."""
    is_shared: bool


def replay_release(
    exposures: Exposures,
    rewards: FloatArray,
    pools: Sequence[Pool | None],
    choices: Sequence[Choices | None],
    *,
    alpha: float = 0.05,
) -> ReleaseReplay:
    """What the personalised slots would have earned with a release's choices.

    Args:
        exposures: n feeds with m slots.
        rewards: float64 [m], as of `totals.slot_rewards`.
        pools: [n]: what the videos of each feed were drawn among; None where none was.
        choices: [n]: of the target; None where it is not known.
        alpha: Intervals hold with probability 1 - alpha.

    Raises:
        FailedPreconditionError: When no slot can be replayed.
        InvalidArgumentError: When rewards, pools or choices do not fit.
    """
    for name, given, count in (
        ("rewards", len(rewards), len(exposures.videos)),
        ("pools", len(pools), len(exposures)),
        ("choices", len(choices), len(exposures)),
    ):
        if given != count:
            raise InvalidArgumentError.of(name, f"must be {count}")
    feeds = [
        feed
        for feed, (pool, own) in enumerate(zip(pools, choices, strict=True))
        if pool is not None and own is not None
    ]
    if not feeds:
        raise FailedPreconditionError(
            "no slot of the log can be replayed: in no feed that the release knows the user of were videos"
            " drawn by chance; serve with some video exploration first"
        )
    found = _Found.of(exposures, feeds, pools, choices)
    usable = found.counts > 0
    if not usable.any():
        raise FailedPreconditionError(
            "no slot of the log can be replayed: it could have shown nothing of what the release would choose"
        )
    personalised = exposures.sources == FeedSource.PERSONALISED
    target = np.where(found.is_target, 1.0 / np.maximum(found.counts, 1), 0.0)
    predictions = _predictions(exposures, rewards, found, usable)
    own = replay(
        exposures.users[exposures.feeds][personalised],
        rewards[personalised],
        exposures.video_propensities[personalised].astype(np.float64),
        target[personalised],
        predictions=Predictions(predictions.target[personalised], predictions.shown[personalised]),
        usable=usable[personalised],
        alpha=alpha,
    )
    asked = found.wanted > 0
    return ReleaseReplay(
        own,
        support=float((found.counts[asked] / found.wanted[asked]).mean()),
        differing_share=float(1.0 - found.is_shared[asked].mean()),
        feed_count=len(np.unique(exposures.feeds[usable])),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """Of all m slots, what the target would do; zeros where it is not asked."""

    wanted: Int64Array
    """[m]: how many choices it has."""
    counts: Int64Array
    """[m]: how many of them could be shown."""
    is_target: BoolArray
    """[m]: whether what was shown is one of these."""
    is_chosen: BoolArray
    """[m]: whether what was shown is on the target's page at all."""
    is_shared: BoolArray
    """[m]: whether it is what the logged release had as its best."""
    ranks: Int64Array
    """[m]: of what was shown."""
    choice_slots: Int64Array
    choice_ranks: Int64Array
    """[all choices that could be shown]: the slot, and the rank, of each."""

    @classmethod
    def of(
        cls,
        exposures: Exposures,
        feeds: Sequence[int],
        pools: Sequence[Pool | None],
        choices: Sequence[Choices | None],
    ) -> "_Found":
        slots: list[int] = []
        rows: list[_Slot] = []
        for feed in feeds:
            pool, own = pools[feed], choices[feed]
            assert pool is not None
            assert own is not None
            start = int(exposures.offsets[feed])
            for slot in _slots(pool, own):
                slots.append(start + slot.position)
                rows.append(slot)
        m = len(exposures.videos)
        ints, flags = np.zeros((3, m), np.int64), np.zeros((3, m), np.bool_)
        ints[:, slots] = np.array([(r.wanted_count, len(r.ranks), r.rank) for r in rows]).reshape(-1, 3).T
        flags[:, slots] = (
            np.array([(r.rank in r.ranks, r.is_chosen, r.is_shared) for r in rows]).reshape(-1, 3).T
        )
        return cls(
            wanted=ints[0],
            counts=ints[1],
            is_target=flags[0],
            is_chosen=flags[1],
            is_shared=flags[2],
            ranks=ints[2],
            choice_slots=np.repeat(np.array(slots, np.int64), [len(r.ranks) for r in rows]),
            choice_ranks=np.array([rank for r in rows for rank in r.ranks], np.int64),
        )


def _slots(pool: Pool, choices: Choices) -> Iterator[_Slot]:
    """What the target would do in each slot of a feed whose video was drawn, as they were filled."""
    drawn = sorted(pooled.last for pooled in pool if pooled.is_shown)
    page, further = choices[: len(drawn)], choices[len(drawn) :]
    on_page, shown = set(page) - {-1}, set[int]()
    for number, position in enumerate(drawn):
        left = [pooled for pooled in pool if pooled.last >= position]
        # What the logged release would show here and in the slots behind, if nothing else were drawn.
        path = [pooled.video for pooled in left[: len(drawn) - number]]
        best = path[0]
        if best in on_page:
            wanted = [best]
        else:
            passed = shown.union(path)
            wanted = [video for video in page if video not in passed] or [
                video for video in further if video not in passed
            ][:1]
        could = {pooled.video: rank for rank, pooled in enumerate(left[:VIDEO_POOL])}
        own = next(pooled.video for pooled in left if pooled.is_shown and pooled.last == position)
        shown.add(own)
        if own not in could:
            return  # Drawn by a server that draws among more: what else could be shown is not known.
        yield _Slot(
            position,
            could[own],
            own in on_page,
            len(wanted),
            [could[video] for video in wanted if video in could],
            best in on_page,
        )


def _predictions(exposures: Exposures, rewards: FloatArray, found: _Found, usable: BoolArray) -> Predictions:
    """Mean rewards by whether the target has the video on its page, position and rank, of the users of other
    folds."""
    folds, positions = folds_of(exposures.users)[exposures.feeds], exposures.positions
    chosen = found.is_chosen.astype(np.int64)
    length = int(positions.max()) + 1
    table = cell_means(
        (folds, chosen, positions, found.ranks), (FOLDS, 2, length, VIDEO_POOL), rewards, usable
    )
    own, ranks = found.choice_slots, found.choice_ranks
    sums = np.bincount(own, table[folds[own], 1, positions[own], ranks], minlength=len(chosen))
    return Predictions(sums / np.maximum(found.counts, 1), table[folds, chosen, positions, found.ranks])
