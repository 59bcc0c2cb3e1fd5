"""Personalised videos by chance: what another release can be replayed from."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from keek_server.feed.types import Candidate, PoolEntry

VIDEO_POOL: Final = 20
"""Among how many of the best videos that are left a slot draws its own; the log is read by it, too
(`experiments.release_replay`). More would cover more of what other releases show, each of it less often."""


class VideoDraws:
    """The personalised videos of one page: mostly the best that is left, and for a share of the slots one of
    the best few, each as likely as the others."""

    def __init__(self, share: float, chance: random.Random) -> None:
        """
        Args:
            share: Of the slots whose video is drawn.
            chance: Draws.
        """
        self._share = share
        self._chance = chance
        self._pool: list[Candidate] = []
        self._entered: list[str] = []
        self._shown: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._propensities: dict[int, float] = {}

    def take(
        self, queue: Iterator[Candidate], fits: Callable[[Candidate], bool], place: int
    ) -> Candidate | None:
        """The video of a slot; None when none is left.

        Args:
            queue: The candidates, best first; what was taken from it is remembered here.
            fits: Whether a candidate may be shown, after what was placed so far.
            place: Of the slot.
        """
        self._fill(queue, fits, place)
        count = len(self._pool)
        if not count:
            return None
        drawn = self._chance.randrange(count) if self._chance.random() < self._share else 0
        chosen = self._pool.pop(drawn)
        self._shown[chosen.video_id] = place
        self._propensities[place] = (1.0 - self._share) * (drawn == 0) + self._share / count
        return chosen

    def propensities(self, items: Sequence[Candidate | None]) -> list[float]:
        """Of each video of a page, by place, how likely it was; see `Selection.video_propensities`."""
        return [self._propensities.get(place, 1.0) for place, item in enumerate(items) if item is not None]

    def pool(self, items: Sequence[Candidate | None]) -> list[PoolEntry] | None:
        """What the slots of a page, by place, were drawn among; see `Selection.pool`."""
        numbers, count = [], 0
        for item in items:
            numbers.append(count)
            count += item is not None
        pool: list[PoolEntry] = []
        for video_id in self._entered:
            if video_id in self._shown:
                pool.append(numbers[self._shown[video_id]])
            elif video_id in self._dropped:
                pool.append((video_id, numbers[self._dropped[video_id]]))
            else:
                pool.append(video_id)
        return pool or None

    def _fill(self, queue: Iterator[Candidate], fits: Callable[[Candidate], bool], place: int) -> None:
        kept = [candidate for candidate in self._pool if fits(candidate)]
        if len(kept) < len(self._pool):
            # Another source showed it, or its owner's share is full.
            left = {candidate.video_id for candidate in kept}
            gone = (each.video_id for each in self._pool if each.video_id not in left)
            self._dropped.update(dict.fromkeys(gone, place))
        self._pool = kept
        while len(kept) < VIDEO_POOL and (candidate := next(filter(fits, queue), None)) is not None:
            kept.append(candidate)
            self._entered.append(candidate.video_id)
