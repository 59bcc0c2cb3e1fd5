"""The second stage: the release's ranker puts the personalised candidates of a page in order."""

from itertools import compress

import numpy as np

from keek_server.errors import UnavailableError
from keek_server.feed.types import Candidate, FeedContext, FeedSource


class ReleaseRanking:
    """Asks the ranker of the release that the request captured."""

    name = "ranker"
    asks = "Triton's ranker"

    async def rank(self, context: FeedContext, candidates: list[Candidate]) -> None:
        """See `Ranking`; scores stay as they are, since others compare them: only the order changes."""
        ranker, vector = context.serving.ranker, context.user_vector
        own = [candidate for candidate in candidates if candidate.source is FeedSource.PERSONALISED]
        if ranker is None or vector is None or len(own) < 2:
            return
        video_ids = [candidate.video_id for candidate in own]
        known, page = ranker.videos.page(vector, video_ids, context.history, context.now_us)
        scores = await ranker.model.scores(page)
        if not np.isfinite(scores).all():
            raise UnavailableError(f"ranker version {ranker.model.version} gave scores that are not finite")
        order = np.argsort(-scores, kind="stable").tolist()
        found = list(compress(own, known))
        ranked = [found[place] for place in order]
        # Removed since they were found: as the index would, were it asked again, the page goes without.
        ranked += compress(own, ~known)
        others = [candidate for candidate in candidates if candidate.source is not FeedSource.PERSONALISED]
        candidates[:] = ranked + others
        context.ranker_version = ranker.model.version
