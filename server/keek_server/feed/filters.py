"""The filters, in the order they run."""

from keek_server.feed.types import Candidate, FeedContext, Filter
from keek_server.retrieval.ids import hash_id


class DeletedFilter:
    """Removes what was deleted since the release was built."""

    name = "deleted"
    detail = "it was deleted"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """See `Filter`."""
        deleted = context.serving.fresh.deleted
        if not deleted:
            return None
        return [candidate.video_id not in deleted for candidate in candidates]


class SeenFilter:
    """Removes what the user interacted with before."""

    name = "seen"
    detail = "the user has interacted with it before"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """See `Filter`."""
        seen = context.user.seen
        return [candidate.video_id not in seen for candidate in candidates]


class ServedFilter:
    """Removes what stood on an earlier page of this session."""

    name = "served"
    detail = "it was on an earlier page of this feed"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """See `Filter`."""
        served = context.served
        if not served:
            return None
        return [hash_id(candidate.video_id) not in served for candidate in candidates]


class BlockedOwnerFilter:
    """Removes what belongs to owners that the user blocked."""

    name = "blocked"
    detail = "the user has blocked its owner"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """See `Filter`."""
        blocked = context.query.blocked_owners
        if not blocked:
            return None
        return [candidate.owner not in blocked for candidate in candidates]


class RequestFilter:
    """Removes what the request does not ask for, and what is not known well enough to say."""

    name = "filter"
    detail = "it does not meet the filter of the request"

    def keeps(self, context: FeedContext, candidates: list[Candidate]) -> list[bool] | None:
        """See `Filter`."""
        if not context.query.filter.is_set:
            return None
        meeting = frozenset(context.meeting([candidate.video_id for candidate in candidates]))
        return [candidate.video_id in meeting for candidate in candidates]


FILTERS: tuple[Filter, ...] = (
    DeletedFilter(),
    SeenFilter(),
    ServedFilter(),
    BlockedOwnerFilter(),
    RequestFilter(),
)
"""All filters, in the order they run."""
