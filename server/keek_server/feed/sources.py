"""The sources: personalised, trending, popular."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from keek_server.errors import UnavailableError
from keek_server.feed.history import kept_vector, user_vector
from keek_server.feed.types import Candidate, Degradation, FeedContext, FeedSource
from keek_server.interactions.heads import Head, TrendingHead
from keek_server.interactions.trending import Trending
from keek_server.releases.opening import ServingRelease
from keek_server.releases.release import Corpus
from keek_server.retrieval.found import FoundVideo
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.query import Excluded, Query
from keek_server.towers.features import Float32Array
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.filters import FILTERED_COLUMNS

_MARGIN: Final = 3
"""Candidates per slot, so that the owner cap has something to choose from."""
_AHEAD: Final = 2
"""Further candidates per slot that are searched with the first page, and kept for those that follow."""
_SPARE: Final = 1024
"""Deleted and other videos that are passed over at the head of the trending list, beside what the user has
seen, before fewer candidates are enough."""

_REST: Final = 4096
"""Videos that are looked at for whoever has seen the whole popular list."""


class PersonalisedSource:
    """History -> user tower in Triton -> nearest videos in the index."""

    name = "personalised"
    source = FeedSource.PERSONALISED
    asks = "Triton and the index"

    def enabled(self, context: FeedContext) -> bool:
        """Only for users with a history: for others the tower knows nothing."""
        return bool(context.user.history)

    def at_once(self, context: FeedContext, count: int) -> list[Candidate] | None:
        """See `Source`: where the user's vector and what was found for it still hold."""
        serving, query = context.serving, context.query
        if query.allowed is not None:
            return None
        videos = serving.fresh.index
        vector = kept_vector(serving.users, videos, query.user_id, context.history, context.now_us)
        context.user_vector = vector
        if vector is None:
            return None
        found = serving.found.find(
            query.user_id,
            vector,
            videos,
            _MARGIN * count,
            seen=context.user.seen,
            served=context.served,
        )
        return None if found is None else self._proposed(found)

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by the dot product of user and video vector."""
        serving, query = context.serving, context.query
        vector = await user_vector(
            serving.users, serving.fresh.index, query.user_id, context.history, context.now_us
        )
        if vector is None:
            return []
        context.user_vector = vector
        if query.allowed is not None:
            found = await self._search(context, vector, _MARGIN * count)
        else:
            found = await self._search_ahead(context, vector, _MARGIN * count, _AHEAD * count)
        return self._proposed(found)

    def _proposed(self, found: Iterable[FoundVideo]) -> list[Candidate]:
        return [Candidate(video_id, self.source, score, owner) for video_id, score, owner in found]

    async def _search_ahead(
        self, context: FeedContext, vector: Float32Array, wanted: int, ahead: int
    ) -> list[FoundVideo]:
        """What a search finds, which is kept with some more for the pages that follow."""
        change_count = context.serving.fresh.index.change_count
        found = await self._search(context, vector, wanted + ahead)
        if not context.served:
            context.serving.found.keep(
                context.query.user_id,
                vector,
                found,
                seen=context.user.seen,
                change_count=change_count,
                is_whole=len(found) < wanted + ahead,
            )
        return found[:wanted]

    async def _search(self, context: FeedContext, vector: Float32Array, wanted: int) -> list[FoundVideo]:
        serving, asked = context.serving, context.query
        excluded = Excluded(context.user.seen, context.served)
        query = Query(vector, wanted, asked.allowed, excluded=excluded, among=asked.filter.rows)
        # Where few videos meet a filter, all are asked: other feeds do not wait for that.
        searcher = serving.side_searcher if asked.filter.is_set else serving.searcher
        hits = await searcher.search(query)
        owners = hits.values(serving.fresh.index.columns["owners"], "owners")
        return list(zip(hits.found_ids(), hits.scores.tolist(), owners, strict=True))


class Listed(NamedTuple):
    """A video of a list that is the same for everyone."""

    video_id: str
    hash: int
    owner: int
    score: float


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the videos of a head."""

    head: Head
    forget_count: int
    """Of the catalogue, when it was asked."""
    listed: list[Listed]
    problem: str
    """Why the catalogue does not say; empty when it does."""
    serving: ServingRelease | None
    """The release that says it instead."""

    def holds(self, head: Head, forget_count: int, serving: ServingRelease) -> bool:
        """Whether it is the same for another request."""
        same = self.head is head and self.forget_count == forget_count
        return same and (self.serving is None or self.serving is serving)


class TrendingSource:
    """What many users like at the moment, from Redis."""

    name = "trending"
    source = FeedSource.TRENDING
    asks = "Redis and the catalogue"

    def __init__(self, trending: Trending, head: TrendingHead, catalogue: Catalogue) -> None:
        self._trending = trending
        self._head = head
        self._catalogue = catalogue
        self._known: _Known | None = None

    def enabled(self, _context: FeedContext) -> bool:
        """For everyone."""
        return True

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by decayed weight."""
        wanted = _MARGIN * count
        deepest = wanted + context.excluded_count + _SPARE
        depth = wanted
        while True:
            head = await self._head.top(depth)
            candidates = self._choose(context, await self._look_up(context, head), wanted)
            if len(candidates) == wanted or head.is_whole or len(head.rows) >= deepest:
                break
            depth = min(deepest, 2 * len(head.rows))
        return self._scored(candidates)

    def at_once(self, context: FeedContext, count: int) -> list[Candidate] | None:
        """See `Source`: from the head that is kept, as long as it reaches."""
        wanted = _MARGIN * count
        head = self._head.kept(wanted)
        known = None if head is None else self._kept_known(context, head)
        if head is None or known is None:
            return None
        candidates = self._choose(context, known, wanted)
        return self._scored(candidates) if len(candidates) == wanted or head.is_whole else None

    def _scored(self, candidates: list[Candidate]) -> list[Candidate]:
        zero = self._trending.log2_of_one()
        for candidate in candidates:
            candidate.score = 2.0 ** (candidate.score - zero)
        return candidates

    def _choose(self, context: FeedContext, known: _Known, wanted: int) -> list[Candidate]:
        if known.problem and not any(each.source is self.source for each in context.degradations):
            context.degradations.append(Degradation(self.source, known.problem))
        listed: Iterable[Listed] = known.listed
        if context.query.filter.is_set:
            meeting = context.meeting([video.video_id for video in listed])
            listed = (video for video in listed if video.video_id in meeting)
        if blocked := context.query.blocked_owners:
            listed = (video for video in listed if video.owner not in blocked)
        return _choose(context, listed, self.source, wanted)

    def _kept_known(self, context: FeedContext, head: Head) -> _Known | None:
        """What the catalogue said of a head, as long as it says the same."""
        known = self._known
        if known is not None and known.holds(head, self._catalogue.forget_count, context.serving):
            return known
        return None

    async def _look_up(self, context: FeedContext, head: Head) -> _Known:
        """The videos of the head that the catalogue has, with their owners as they are now."""
        kept = self._kept_known(context, head)
        if kept is not None:
            return kept
        serving, forget_count = context.serving, self._catalogue.forget_count
        # The catalogue would ask SQL for those that are deleted, with every head.
        wanted = [id_ for id_, _ in head.rows if id_ not in serving.fresh.deleted]
        problem = ""
        try:
            briefs = await self._catalogue.briefs(wanted, for_feed=True)
            owners = {video_id: hash_id(brief.owner_id) for video_id, brief in briefs.items()}
        except UnavailableError as error:
            owners = context.owners_of(wanted)
            problem = f"looked up in the release alone: {error}"
        listed = [
            Listed(id_, hash_id(id_), owners[id_], log2_score)
            for id_, log2_score in head.rows
            if id_ in owners
        ]
        self._known = _Known(head, forget_count, listed, problem, serving if problem else None)
        return self._known


class PopularSource:
    """The popular list of the release: for whoever is new, and whenever others fail."""

    name = "popular"
    source = FeedSource.POPULAR
    asks = ""

    def __init__(self) -> None:
        self._listed: WeakKeyDictionary[Corpus, list[Listed]] = WeakKeyDictionary()
        self._owned: WeakKeyDictionary[Corpus, _Owned] = WeakKeyDictionary()

    def enabled(self, _context: FeedContext) -> bool:
        """For everyone: it also refills what others leave open."""
        return True

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`."""
        return self.at_once(context, count)

    def at_once(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by the share of interactions in training."""
        corpus = context.serving.release.corpus
        popular = self._popular(corpus)
        listed: Iterable[Listed] = popular
        allowed = context.query.allowed
        if allowed is not None:
            columns = {name: corpus.columns[name][corpus.popular] for name in FILTERED_COLUMNS}
            if context.query.blocked_owners:
                _, popular, columns["owners"] = self._as_owned_now(context)
            listed = compress(popular, allowed(columns))
        chosen = _choose(context, listed, self.source, _MARGIN * count)
        if len(chosen) < count and allowed is None:
            # Who has seen them all gets others rather than nothing.
            rest = _rest(corpus, hash_id(context.query.user_id))
            chosen += _choose(context, rest, self.source, count - len(chosen))
        return chosen

    def _popular(self, corpus: Corpus) -> Sequence[Listed]:
        """The whole list, most popular first; read once a release."""
        listed = self._listed.get(corpus)
        if listed is None:
            listed = self._listed[corpus] = _list_popular(corpus)
        return listed

    def _as_owned_now(self, context: FeedContext) -> "_Owned":
        """The list with the owners that its videos have by now; looked up again when anything has changed."""
        corpus, index = context.serving.release.corpus, context.serving.fresh.index
        known = self._owned.get(corpus)
        if known is None or known.change_count != index.change_count:
            popular = self._popular(corpus)
            owners = context.owners_of([video.video_id for video in popular])
            now = [video._replace(owner=owners.get(video.video_id, video.owner)) for video in popular]
            column = np.array([video.owner for video in now], np.uint64)
            known = self._owned[corpus] = _Owned(index.change_count, now, column)
        return known


class _Owned(NamedTuple):
    """The popular list as it is after a number of changes of an index."""

    change_count: int
    listed: list[Listed]
    owners: npt.NDArray[np.uint64]


def _rest(corpus: Corpus, start: int) -> Iterator[Listed]:
    """Videos of the release as they come, from some row on: more than a user has seen and been served."""
    owners, count = corpus.columns["owners"], len(corpus.ids)
    for place in range(min(count, _REST)):
        row = (start + place) % count
        video_id = corpus.ids.id_of(row)
        yield Listed(video_id, hash_id(video_id), int(owners[row]), 0.0)


def _list_popular(corpus: Corpus) -> list[Listed]:
    ids = corpus.ids.ids_of(corpus.popular)
    owners = corpus.columns["owners"][corpus.popular].tolist()
    return list(map(Listed, ids, map(hash_id, ids), owners, corpus.popularity.tolist()))


def _choose(
    context: FeedContext, listed: Iterable[Listed], source: FeedSource, wanted: int
) -> list[Candidate]:
    """The first `wanted` of a list that were neither deleted nor seen nor served: most of a page's time went
    into proposing what the filters then removed."""
    deleted, seen, served = context.serving.fresh.deleted, context.user.seen, context.served
    left = (
        Candidate(video_id, source, score, owner)
        for video_id, hash_, owner, score in listed
        if video_id not in deleted and video_id not in seen and hash_ not in served
    )
    return list(islice(left, wanted))
