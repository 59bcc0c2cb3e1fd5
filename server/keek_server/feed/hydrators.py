"""Where the user's state comes from: the projection, or else the log itself."""

from keek_server.feed.types import Degradation, FeedContext, FeedSource
from keek_server.interactions.history import History, HistoryEntry
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection, UserState


class ProjectionHydrator:
    """History and seen set from Redis."""

    name = "projection"

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    async def hydrate(self, context: FeedContext) -> None:
        """See `Hydrator`."""
        context.user = await self._projection.user(context.query.user_id)


class LogHydrator:
    """The same from SQL, slower, when Redis is gone."""

    name = "log"

    def __init__(self, log: InteractionLog, history_limit: int) -> None:
        self._log = log
        self._history_limit = history_limit

    async def hydrate(self, context: FeedContext) -> None:
        """See `Hydrator`."""
        rows = await self._log.history(context.query.user_id, self._history_limit)
        entries = [HistoryEntry(row.video_id, row.kind, row.event_time_us) for row in rows]
        context.user = UserState(History.of(entries), frozenset(entry.video_id for entry in entries))
        context.degradations.append(
            Degradation(FeedSource.PERSONALISED, "history read from the log: Redis does not answer")
        )
