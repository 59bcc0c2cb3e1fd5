"""What the tests of the log and its projection share."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from keek_server.clock import now_us
from keek_server.interactions.append import Interaction
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.interactions.projector import Projector
from keek_server.interactions.trending import Trending
from keek_server.interactions.writer import ProjectionWriter
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database

LIKE, VIEW, SAVE, SKIP = (
    InteractionKind.LIKE,
    InteractionKind.VIEW,
    InteractionKind.SAVE,
    InteractionKind.SKIP,
)


@dataclass
class Parts:
    """A log, a projection of it and what works on them, wired as in a server."""

    settings: Settings
    database: Database
    redis: Redis
    log: InteractionLog
    keys: ProjectionKeys
    projection: Projection
    trending: Trending

    def writer(self) -> ProjectionWriter:
        """A writer that holds no lease."""
        return ProjectionWriter(self.redis, self.keys, self.settings)

    def projector(self) -> Projector:
        """A projector that does not run."""
        return Projector(self.log, self.projection, self.writer(), self.settings)


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Opens the database and Redis of the settings."""
    async with open_database(settings) as database, open_redis(settings) as redis:
        log = InteractionLog(database)
        keys = ProjectionKeys.of(settings.redis_prefix, (await log.extent()).log_id)
        projection = Projection(redis, keys, deadline_s=settings.redis_deadline_s)
        yield Parts(settings, database, redis, log, keys, projection, Trending(projection, settings))


def event(
    user: str,
    video: str,
    kind: InteractionKind = LIKE,
    *,
    age_s: float = 0.0,
    event_id: str | None = None,
    region: str = "",
    tags: tuple[str, ...] = (),
    watched_ms: int | None = None,
) -> Interaction:
    """An interaction that happened `age_s` ago."""
    event_id = event_id or uuid.uuid4().hex
    return Interaction(event_id, user, video, kind, now_us() - int(age_s * 1e6), region, tags, watched_ms)
