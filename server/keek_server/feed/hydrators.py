"""Where the user's state comes from: the projection, or else the log itself."""

from keek_server.feed.types import FeedContext
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection


class ProjectionHydrator:
    """History and seen set from Redis."""

    name = "projection"
    asks = "Redis"

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    async def hydrate(self, context: FeedContext) -> None:
        """See `Hydrator`."""
        context.user = await self._projection.user(context.query.user_id)


class LogHydrator:
    """The same from SQL, slower, when Redis is gone."""

    name = "log"
    asks = "the database"

    def __init__(self, log: InteractionLog, *, history_limit: int, seen_limit: int) -> None:
        """
        Args:
            log: Of all interactions.
            history_limit: The most interactions of a history.
            seen_limit: The latest interactions whose videos count as seen.
        """
        self._log = log
        self._history_limit = history_limit
        self._seen_limit = seen_limit

    async def hydrate(self, context: FeedContext) -> None:
        """See `Hydrator`."""
        context.user = await self._log.user(
            context.query.user_id, history_limit=self._history_limit, seen_limit=self._seen_limit
        )
