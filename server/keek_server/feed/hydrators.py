"""Where the user's state comes from: the projection, or else the log itself."""

from keek_server.feed.types import FeedContext
from keek_server.interactions.projection import Projection
from keek_server.interactions.users import LoggedUsers


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

    def __init__(self, users: LoggedUsers) -> None:
        self._users = users

    async def hydrate(self, context: FeedContext) -> None:
        """See `Hydrator`."""
        context.user = await self._users.user(context.query.user_id)
