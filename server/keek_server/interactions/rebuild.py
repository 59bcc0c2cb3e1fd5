"""Building the projection anew on demand, while servers go on serving from the one they have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.interactions.projector import Projector
from keek_server.interactions.writer import ProjectionWriter
from keek_server.settings import Settings
from keek_server.storage.database import open_database

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class RebuildProgress:
    """How far the new generation is."""

    seq: int
    """Rows of the log up to here are in it."""
    last_seq: int
    """The last row of the log."""
    done: bool
    """Whether it is the one that is read."""


async def rebuild_projection(settings: Settings) -> AsyncIterator[RebuildProgress]:
    """Has a new generation built, by the server that holds the lease or, without one, here.

    Yields its progress a few times a second, until it is read.

    Raises:
        SetupError: When the database or Redis cannot be reached.
        UnavailableError: When Redis is lost on the way. Servers then build it when it is back.
    """
    async with open_database(settings) as database, open_redis(settings) as redis:
        log = InteractionLog(database)
        keys = ProjectionKeys.of(settings.redis_prefix, (await log.extent()).log_id)
        projection = Projection(redis, keys, deadline_s=settings.redis_deadline_s)
        writer = ProjectionWriter(redis, keys, settings)
        before = max(await writer.generations(), default=0)
        await writer.want_rebuild()
        # It stands by for as long as a server holds the lease.
        projector = Projector(log, projection, writer, settings)
        running = asyncio.create_task(projector.run())
        try:
            while True:
                if running.done():
                    await running
                current = await writer.current()
                done = current is not None and current.number > before
                seq = await writer.seq_of(max(await writer.generations(), default=0))
                yield RebuildProgress(seq, (await log.extent()).last_seq, done)
                if done:
                    return
                await asyncio.sleep(_POLL_S)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
