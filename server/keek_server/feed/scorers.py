"""Ordering candidates."""

import math
from operator import attrgetter

from keek_server.feed.types import Candidate, FeedContext


class SourceScorer:
    """Orders each source's candidates by its own score; what is not a number sinks to the end."""

    name = "source score"

    def score(self, _context: FeedContext, candidates: list[Candidate]) -> list[Candidate]:
        """See `Scorer`."""
        for candidate in candidates:
            if not math.isfinite(candidate.score):
                candidate.score = -math.inf
        return sorted(candidates, key=attrgetter("score"), reverse=True)
