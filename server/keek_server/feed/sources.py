"""The sources: personalised, trending, popular."""

from collections.abc import Container, Iterable
from itertools import islice

from keek_server.feed.history import history_inputs
from keek_server.feed.types import Candidate, FeedContext, FeedSource
from keek_server.interactions.trending import Trending
from keek_server.releases.release import Corpus
from keek_server.retrieval.fresh import Allowed
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.query import Excluded, Query
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.filters import FILTERED_COLUMNS

_MARGIN = 3
"""Candidates per slot, so that the owner cap has something to choose from."""


class PersonalisedSource:
    """History -> user tower in Triton -> nearest videos in the index."""

    name = "personalised"
    source = FeedSource.PERSONALISED

    def enabled(self, context: FeedContext) -> bool:
        """Only for users with a history: for others the tower knows nothing."""
        return bool(context.history)

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by the dot product of user and video vector."""
        videos = context.serving.fresh.index
        inputs = history_inputs(videos, context.query.user_id, context.history, context.now_us)
        if len(inputs.kinds) == 0:
            return []
        vector = await context.serving.users.vector(inputs)
        excluded = Excluded(context.user.seen, frozenset(context.query.served))
        wanted = context.query
        query = Query(vector, _MARGIN * count, wanted.allowed, excluded=excluded, among=wanted.filter.rows)
        # Where few videos meet a filter, all are asked: other feeds do not wait for that.
        filtered = wanted.filter.is_set
        searcher = context.serving.side_searcher if filtered else context.serving.searcher
        hits = await searcher.search(query)
        owners = hits.values(videos.columns["owners"], "owners")
        return [
            Candidate(video_id, self.source, score, owner)
            for video_id, score, owner in zip(hits.found_ids(), hits.scores.tolist(), owners, strict=True)
        ]


class TrendingSource:
    """What many users like at the moment, from Redis."""

    name = "trending"
    source = FeedSource.TRENDING

    def __init__(self, trending: Trending, catalogue: Catalogue) -> None:
        self._trending = trending
        self._catalogue = catalogue

    def enabled(self, _context: FeedContext) -> bool:
        """For everyone."""
        return True

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by decayed weight."""
        deleted = context.serving.fresh.deleted
        owners: dict[str, int] = {}

        async def known(video_ids: Iterable[str]) -> Container[str]:
            # The catalogue would ask SQL for those that are deleted, with every feed.
            ids = [id_ for id_ in video_ids if id_ not in deleted]
            briefs = await self._catalogue.briefs(context.meeting(ids))
            owners.update((id_, hash_id(brief.owner_id)) for id_, brief in briefs.items())
            blocked = context.query.blocked_owners
            return {id_ for id_, owner in owners.items() if owner not in blocked} if blocked else owners

        page = await self._trending.top(_MARGIN * count + context.excluded_count, known=known)
        return [
            Candidate(video.video_id, self.source, video.score, owners[video.video_id])
            for video in page.videos
        ]


class PopularSource:
    """The popular list of the release: for whoever is new, and whenever others fail."""

    name = "popular"
    source = FeedSource.POPULAR

    def enabled(self, _context: FeedContext) -> bool:
        """For everyone: it also refills what others leave open."""
        return True

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        """See `Source`; scored by the share of interactions in training."""
        corpus, deleted = context.serving.release.corpus, context.serving.fresh.deleted
        owners = corpus.columns["owners"]
        popular = _popular(corpus, context.query.allowed)
        ranked = ((corpus.ids.id_of(row), row, score) for row, score in popular)
        left = (
            Candidate(video_id, self.source, score, owners[row].item())
            for video_id, row, score in ranked
            if video_id not in deleted
        )
        return list(islice(left, _MARGIN * count + context.excluded_count))


def _popular(corpus: Corpus, allowed: Allowed | None) -> Iterable[tuple[int, float]]:
    """Rows and scores of those that may be shown, most popular first."""
    rows, scores = corpus.popular, corpus.popularity
    if allowed is not None:
        met = allowed({name: corpus.columns[name][rows] for name in FILTERED_COLUMNS})
        rows, scores = rows[met], scores[met]
    return zip(rows.tolist(), scores.tolist(), strict=True)
