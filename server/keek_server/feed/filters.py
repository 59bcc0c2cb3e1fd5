"""The filters, in the order they run."""

from keek_server.feed.types import Candidate, FeedContext, Filter
from keek_server.retrieval.ids import hash_id


class DeletedFilter:
    """Removes what was deleted since the release was built."""

    name = "deleted"
    detail = "it was deleted"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool]:
        """See `Filter`."""
        deleted = context.serving.fresh.deleted
        return [candidate.video_id not in deleted for candidate in candidates]


class SeenFilter:
    """Removes what the user interacted with before."""

    name = "seen"
    detail = "the user has interacted with it before"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool]:
        """See `Filter`."""
        seen = context.user.seen
        return [candidate.video_id not in seen for candidate in candidates]


class ServedFilter:
    """Removes what stood on an earlier page of this session."""

    name = "served"
    detail = "it was on an earlier page of this feed"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool]:
        """See `Filter`."""
        served = frozenset(context.query.served)
        if not served:
            return [True] * len(candidates)
        return [hash_id(candidate.video_id) not in served for candidate in candidates]


FILTERS: tuple[Filter, ...] = (DeletedFilter(), SeenFilter(), ServedFilter())
"""All filters, in the order they run."""
