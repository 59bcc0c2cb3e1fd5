"""The sources: personalised, trending, popular."""

from keek_server.feed.history import history_inputs
from keek_server.feed.types import Candidate, FeedContext, FeedSource
from keek_server.interactions.trending import Trending
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.live import Query
from keek_server.videos.catalogue import Catalogue

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
        wanted = _MARGIN * count + context.excluded_count
        hits = await context.serving.searcher.search(Query(vector, wanted))
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
        page = await self._trending.top(_MARGIN * count + context.excluded_count)
        briefs = await self._catalogue.briefs(video.video_id for video in page.videos)
        return [
            Candidate(video.video_id, self.source, video.score, hash_id(briefs[video.video_id].owner_id))
            for video in page.videos
            if video.video_id in briefs
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
        corpus = context.serving.release.corpus
        wanted = _MARGIN * count + context.excluded_count + len(context.serving.fresh.deleted)
        rows = corpus.popular[:wanted].tolist()
        owners = corpus.columns["owners"][rows].tolist()
        scores = corpus.popularity[:wanted].tolist()
        return [
            Candidate(corpus.ids.id_of(row), self.source, score, owner)
            for row, score, owner in zip(rows, scores, owners, strict=True)
        ]
