"""A stage for faults: a small release, really trained, on PostgreSQL, with a proxy before each dependency."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sqlalchemy as sa

import keek
import keek.aio
from benchmarks.dependencies import Dependency, proxied
from benchmarks.release_stage import serving
from benchmarks.server_process import ServerProcess
from benchmarks.small_release import publish_small_release
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.postgres import running_postgres
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import interactions
from keek_server.towers.client import open_towers
from keek_training.hourly.feeds import write_cached_feeds

_UP_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs."""

    settings: Settings
    """Without the proxies."""
    server: ServerProcess
    dependencies: dict[str, Dependency]
    video_ids: list[str]

    async def cache_feeds(self) -> int:
        """Computes the feeds of active users in advance, as `keek-train hourly` does; says how many."""
        async with keek.aio.Client(self.server.address) as client:
            release_id = (await client.list_feed("nobody")).release_id
        async with open_database(self.settings) as database, open_towers(self.settings) as towers:
            return await write_cached_feeds(release_id, database, towers, self.settings)

    async def recorded(self, event_ids: set[str]) -> int:
        """How many of these events the log holds."""
        async with open_database(self.settings) as database, database.read() as connection:
            found = (await connection.execute(sa.select(interactions.c.event_id))).scalars()
            return len(event_ids & {each.hex for each in found})


@asynccontextmanager
async def open_fault_stage(directory: Path) -> AsyncIterator[Stage]:
    """Trains, publishes, and serves; nothing runs any more when the block is left.

    Args:
        directory: Gets everything; the environment names it from here on.

    Raises:
        SetupError: A command fails, or something cannot be started.
        TimeoutError: The server does not come up.
    """
    async with AsyncExitStack() as resources:
        postgres = await resources.enter_async_context(running_postgres())
        os.environ["KEEK_DATABASE_URL"] = postgres.service.url
        await asyncio.to_thread(publish_small_release, directory)
        stack = await resources.enter_async_context(EmbeddedStack(Settings(startup_timeout_s=_UP_S)))
        settings, dependencies = await resources.enter_async_context(proxied(stack.settings, stack, postgres))
        server = ServerProcess("server", settings, settings.data_dir / "logs")
        await resources.enter_async_context(serving(server))
        async with keek.aio.Client(server.address) as client:
            video_ids = [video.video_id async for video in client.iter_videos()]
        yield Stage(stack.settings, server, dependencies, video_ids)
