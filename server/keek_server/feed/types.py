"""What flows through the feed pipeline, and the seven roles that work on it."""

import random
import time
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from itertools import compress
from typing import Any, Protocol, TypeAlias

import numpy as np

from keek_server.experiments.assignment import NO_ARMS, Assignment
from keek_server.feed.parameters import USUAL, FeedParameters
from keek_server.interactions.history import History
from keek_server.interactions.projection import UserState
from keek_server.releases.opening import ServingRelease
from keek_server.retrieval.fresh import Allowed, Columns
from keek_server.retrieval.index import Mask
from keek_server.towers.features import Float32Array
from keek_server.videos.filters import ANY_VIDEO, FILTERED_COLUMNS, VideoFilter


class FeedSource(IntEnum):
    """Producers of candidates, numbered as in `keek.v1.FeedSource`."""

    PERSONALISED = 1
    TRENDING = 2
    FRESH = 3
    POPULAR = 4
    CACHED = 5


@dataclass(frozen=True, slots=True)
class FeedQuery:
    """One page of one user's feed."""

    user_id: str
    page_size: int
    deadline_s: float
    """Seconds that the whole page may take."""
    served: tuple[int, ...] = ()
    """Hashes (`retrieval.ids.hash_id`) of the videos on earlier pages of this session."""
    filter: VideoFilter = ANY_VIDEO
    """What every video must meet."""
    blocked_owners: frozenset[int] = frozenset()
    """Hashes of the ids of owners whose videos the user does not want."""

    @property
    def allowed(self) -> Allowed | None:
        """Which rows of an index may be in the feed, by their columns; None where any may."""
        if not self.blocked_owners:
            return self.filter.allowed
        return self._meets_both

    def _meets_both(self, columns: Columns) -> Mask:
        blocked = np.fromiter(self.blocked_owners, np.uint64, count=len(self.blocked_owners))
        return self.filter.mask(columns) & ~np.isin(columns["owners"], blocked)


@dataclass(slots=True)
class Candidate:
    """A video that one source proposes."""

    video_id: str
    source: FeedSource
    score: float
    owner: int = 0
    """Hash of the owner's id; 0 when unknown."""


@dataclass(slots=True)
class Degradation:
    """A source that could not do its part, and what filled its slots."""

    source: FeedSource
    reason: str
    replaced_by: list[FeedSource] = field(default_factory=list)


@dataclass(slots=True)
class FeedContext:
    """One request on its way: what it captured at its entry, and what is known of the user."""

    query: FeedQuery
    serving: ServingRelease
    now_us: int
    user: UserState = field(default_factory=lambda: UserState(History(), frozenset()))
    degradations: list[Degradation] = field(default_factory=list)
    failed: set[FeedSource] = field(default_factory=set)
    """The sources that could not do their part."""
    user_vector: Float32Array | None = None
    """float32 [DIMENSION], once the user tower has answered."""
    ranker_version: int = 0
    """Of the ranker that ordered the personalised candidates; 0 where their scores did."""
    parameters: FeedParameters = USUAL
    assignment: Assignment = NO_ARMS
    started_s: float = field(default_factory=time.monotonic)
    """By the monotonic clock."""
    seed: int = field(default_factory=partial(random.getrandbits, 64))
    """Of what is left to chance: a page that is chosen a second time, with more candidates, draws alike."""
    served: frozenset[int] = field(init=False)
    """The query's."""

    def __post_init__(self) -> None:
        self.served = frozenset(self.query.served)

    @property
    def remaining_s(self) -> float:
        """What is left of the query's deadline; not below 0."""
        return max(0.0, self.query.deadline_s - (time.monotonic() - self.started_s))

    @property
    def history(self) -> History:
        """What the user tower reads: the latest interactions, newest last."""
        return self.user.history[-self.serving.release.manifest.history_length :]

    def owners_of(self, video_ids: Sequence[str]) -> dict[str, int]:
        """Hashes of the owners' ids, as they are now, of those of some videos that the release knows."""
        known, columns = self.serving.fresh.index.columns_of(video_ids, ("owners",))
        return dict(zip(compress(video_ids, known), columns["owners"].tolist(), strict=True))

    def meeting(self, video_ids: Sequence[str]) -> Collection[str]:
        """Those of some videos that meet the request's filter; where it asks for something, those alone that
        the release knows."""
        if not self.query.filter.is_set:
            return video_ids
        known, columns = self.serving.fresh.index.columns_of(video_ids, FILTERED_COLUMNS)
        met = self.query.filter.mask(columns)
        return set(compress(compress(video_ids, known), met))

    @property
    def excluded_count(self) -> int:
        """Upper bound of the candidates that filters may remove: how much a source over-fetches."""
        return len(self.user.seen) + len(self.query.served)


@dataclass(frozen=True, slots=True)
class SourceTrace:
    """What one source produced."""

    source: FeedSource
    candidate_count: int
    elapsed_s: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class FilterTrace:
    """What one filter did."""

    name: str
    kept_count: int
    removed_count: int


@dataclass(frozen=True, slots=True)
class SlotShare:
    """How many slots the mix gives to a source, and how many it filled."""

    source: FeedSource
    quota_count: int
    served_count: int


PoolEntry: TypeAlias = int | str | tuple[str, int]
"""A video that slots were drawn among: the number of the item that shows it; or its id, where none does; or
its id and the number of the first item that it could not be any more, as its owner's share was full, or
another source had shown it."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen items, in order."""

    items: list[Candidate]
    shares: list[SlotShare]
    propensities: list[float] | None = None
    """How likely the slot of each item was to get the source that it got; NaN where another one filled it.
    None where nothing was left to chance."""
    video_propensities: list[float] | None = None
    """How likely each item was, among those of its source, in its slot, after all that was placed before; 1
    where it was certain. None where no video was drawn by chance."""
    pool: list[PoolEntry] | None = None
    """The personalised videos that slots were drawn among, best first: each slot among the first
    `drawing.VIDEO_POOL` of those that were left."""
    as_planned: bool = True
    """Whether each slot got a video of its own source, and no owner has more than its share."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A page and how it came about."""

    context: FeedContext
    selection: Selection
    sources: list[SourceTrace]
    filters: list[FilterTrace]
    candidates: list[Candidate]
    """What was left to select from."""
    elapsed_s: float = 0.0
    """From its entry until it was made."""


class Hydrator(Protocol):
    """Adds to the context what later stages read."""

    name: str
    asks: str
    """What it waits for, for people."""

    async def hydrate(self, context: FeedContext) -> None:
        """Fails with a KeekError; then the next hydrator of the same kind is asked."""
        ...


class Source(Protocol):
    """Produces candidates, best first."""

    name: str
    source: FeedSource
    asks: str
    """What it waits for, for people."""

    def enabled(self, context: FeedContext) -> bool:
        """Whether it has anything to say for this request."""
        ...

    def at_once(self, context: FeedContext, count: int) -> list[Candidate] | None:
        """The same as `candidates`, where nothing need be waited for; None where it must."""
        ...

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """At least `count` candidates that survive the filters, as far as there are so many; asked where
        `at_once` has none."""
        ...


class Filter(Protocol):
    """Removes candidates that must not be served."""

    name: str
    detail: str
    """Why a video was removed, for people."""

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """Per candidate, whether it stays; None where it has nothing against any."""
        ...


class Scorer(Protocol):
    """Gives the candidates the scores that they are ordered by, within each source."""

    name: str

    def score(self, context: FeedContext, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates, best first within each source."""
        ...


class Ranking(Protocol):
    """Puts candidates in another order than that of their scores, within their source."""

    name: str
    asks: str
    """What it waits for, for people."""

    async def rank(self, context: FeedContext, candidates: list[Candidate]) -> None:
        """Orders the list itself, at once; where it fails with a KeekError, the list is as it was."""
        ...


class Selector(Protocol):
    """Chooses the page."""

    name: str

    def select(self, context: FeedContext, candidates: list[Candidate]) -> Selection:
        """At most `page_size` of them, in the order they are shown."""
        ...


class SideEffect(Protocol):
    """Acts on a page after it was answered."""

    name: str

    def apply(self, page: FeedPage) -> Coroutine[Any, Any, None] | None:
        """What is left to be waited for, if anything. A failure is logged."""
        ...
