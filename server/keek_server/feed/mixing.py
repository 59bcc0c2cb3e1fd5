"""The mix: slots shared between sources by quota, refilled when a source runs short."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from keek_server.feed.drawing import VideoDraws
from keek_server.feed.types import Candidate, FeedContext, FeedSource, Selection, SlotShare

_REFILL = {
    FeedSource.PERSONALISED: (
        FeedSource.PERSONALISED,
        FeedSource.CACHED,
        FeedSource.POPULAR,
        FeedSource.TRENDING,
    ),
    FeedSource.TRENDING: (
        FeedSource.TRENDING,
        FeedSource.PERSONALISED,
        FeedSource.CACHED,
        FeedSource.POPULAR,
    ),
}
"""Who fills a slot of each source, in turn."""
_TRENDING_ALONE = {FeedSource.TRENDING: (FeedSource.TRENDING,)}
_REFILL_FAILED = {
    FeedSource.PERSONALISED: (
        FeedSource.PERSONALISED,
        FeedSource.CACHED,
        FeedSource.TRENDING,
        FeedSource.POPULAR,
    ),
    FeedSource.TRENDING: (
        FeedSource.TRENDING,
        FeedSource.POPULAR,
        FeedSource.PERSONALISED,
        FeedSource.CACHED,
    ),
}
"""The same for a source that failed. Where one only runs short, the mix is kept as far as it goes; where one
failed, what is nearest to it stands in: what was personal a while ago, what is liked now, what was before."""

_SLOTS_REMEMBERED = 256
_SOURCES = tuple(FeedSource)
_NO_CHANCE = random.Random()
"""Where nothing is drawn: to seed one takes longer than to choose a page's slots."""
_DRAWN = tuple(_REFILL)
"""Where exploration draws a slot's source from, each as likely as the others."""


class QuotaSelector:
    """Shares the slots between personalised and trending, evenly spread over the session.

    No video twice; at most `per_owner_cap` videos of one owner on a page, unless the page
    would be short otherwise. With exploration, some slots draw their source, or their video.
    """

    name = "mix"

    def select(self, context: FeedContext, candidates: list[Candidate]) -> Selection:
        """See `Selector`; the candidates of each source best first."""
        parameters, page_size = context.parameters, context.query.page_size
        quota = slots_of(parameters.trending_share(page_size), len(context.query.served), page_size)
        chance = random.Random(context.seed) if parameters.explores else _NO_CHANCE
        slots = _explored(quota, parameters.exploration, chance) if parameters.exploration else quota
        draws = _draws(context, chance)
        page = _Page(slots, candidates, parameters.per_owner_cap, draws)
        # What trends fills its own slots first: a video that is also personal to the user would
        # otherwise take a personalised slot, and the page would show less of both.
        page.fill(_TRENDING_ALONE)
        fillers: Mapping[FeedSource, tuple[FeedSource, ...]] = _REFILL
        if context.failed:
            fillers = {
                source: (_REFILL_FAILED if source in context.failed else _REFILL)[source]
                for source in _REFILL
            }
        page.fill(fillers)
        as_planned = all(item and item.source is slot for item, slot in zip(page.items, slots, strict=True))
        if not all(page.items):
            page.lift_cap()
            page.fill(fillers)
        chosen = [item for item in page.items if item is not None]
        shares = _shares(slots, chosen)
        selection = Selection(chosen, shares, as_planned=as_planned)
        if draws is None and not parameters.exploration:
            return selection
        propensities = _propensities(quota, slots, page.items, parameters.exploration)
        if draws is None:
            return replace(selection, propensities=propensities)
        return replace(
            selection,
            propensities=propensities,
            video_propensities=draws.propensities(page.items),
            pool=draws.pool(page.items),
        )


def _draws(context: FeedContext, chance: random.Random) -> VideoDraws | None:
    """None where no video is left to chance. What a request asks for or blocks is not logged, so that nobody
    could say later what another release would have shown there."""
    share = context.parameters.video_exploration
    return VideoDraws(share, chance) if share and context.query.allowed is None else None


def _explored(quota: Sequence[FeedSource], exploration: float, chance: random.Random) -> list[FeedSource]:
    """The slots after each has, with this probability, drawn its source anew."""
    return [chance.choice(_DRAWN) if chance.random() < exploration else source for source in quota]


def _propensities(
    quota: Sequence[FeedSource],
    slots: Sequence[FeedSource],
    items: Sequence[Candidate | None],
    exploration: float,
) -> list[float]:
    drawn = exploration / len(_DRAWN)
    return [
        drawn + (1.0 - exploration) * (slot is own) if item.source is slot else math.nan
        for own, slot, item in zip(quota, slots, items, strict=True)
        if item is not None
    ]


@lru_cache(_SLOTS_REMEMBERED)
def slots_of(trending_share: float, first: int, count: int) -> tuple[FeedSource, ...]:
    """Which source each slot belongs to; `first` slots stood on earlier pages.

    Slot i is trending where i * share passes a whole number, so that every stretch of
    the session keeps the share, whatever the page size.
    """
    passed = [math.floor(round(i * trending_share, 9)) for i in range(first, first + count + 1)]
    return tuple(
        FeedSource.TRENDING if after > before else FeedSource.PERSONALISED
        for before, after in pairwise(passed)
    )


class _Page:
    """A page while it is filled."""

    def __init__(
        self,
        slots: Sequence[FeedSource],
        candidates: list[Candidate],
        per_owner_cap: int,
        draws: VideoDraws | None,
    ) -> None:
        self.items: list[Candidate | None] = [None] * len(slots)
        self._slots = slots
        self._candidates = candidates
        self._queues = self._restart()
        self._taken: set[str] = set()
        self._owners: Counter[int] = Counter()
        self._cap: float = per_owner_cap
        self._draws = draws

    def fill(self, fillers: Mapping[FeedSource, tuple[FeedSource, ...]]) -> None:
        """Fills open slots, each from the sources named for its own, in turn."""
        for place, slot in enumerate(self._slots):
            if self.items[place] is None:
                self.items[place] = self._take(fillers.get(slot, ()), place)

    def lift_cap(self) -> None:
        """From here on any number of an owner's videos fits: one more is better than a short page."""
        self._cap = math.inf
        self._draws = None
        self._queues = self._restart()

    def _take(self, sources: tuple[FeedSource, ...], place: int) -> Candidate | None:
        for source in sources:
            for candidate in self._queue(source, place):
                if self._fits(candidate):
                    self._taken.add(candidate.video_id)
                    self._owners[candidate.owner] += 1
                    return candidate
        return None

    def _queue(self, source: FeedSource, place: int) -> Iterable[Candidate]:
        """The candidates of a source for a slot, best first; or the one that was drawn."""
        if self._draws is None or source is not FeedSource.PERSONALISED:
            return self._queues[source]
        drawn = self._draws.take(self._queues[source], self._fits, place)
        return () if drawn is None else (drawn,)

    def _fits(self, candidate: Candidate) -> bool:
        if candidate.video_id in self._taken:
            return False
        return candidate.owner == 0 or self._owners[candidate.owner] < self._cap

    def _restart(self) -> dict[FeedSource, Iterator[Candidate]]:
        queues: defaultdict[FeedSource, list[Candidate]] = defaultdict(list)
        for candidate in self._candidates:
            queues[candidate.source].append(candidate)
        return {source: iter(queues.get(source, ())) for source in _SOURCES}


def _shares(slots: Sequence[FeedSource], chosen: Sequence[Candidate]) -> list[SlotShare]:
    quota, served = Counter(slots), Counter([item.source for item in chosen])
    sources = quota if served.keys() <= quota.keys() else quota.keys() | served.keys()
    return [SlotShare(source, quota[source], served[source]) for source in sorted(sources)]
