"""A stage for benchmarks: an embedded stack, a database, and servers on them."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keek
import keek.aio
from benchmarks.server_process import ServerProcess
from benchmarks.steady_load import cancel
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.postgres import EmbeddedPostgres, running_postgres
from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.redis import EmbeddedRedis
from keek_server.settings import Settings

DATABASES = ("sqlite", "postgresql")
_VIDEOS = 300
_TAGS = ("cats", "dogs", "food", "music", "travel")
_UP_S = 90.0
_TRITON_ENVIRONMENT = Path(__file__).parents[1] / ".venv-triton"


@dataclass(frozen=True, slots=True)
class Arena:
    """Everything that runs, and may be killed."""

    settings: Settings
    """What the servers run with, and so what a projection of their log is made with."""
    servers: list[ServerProcess]
    redis: SupervisedProcess[EmbeddedRedis]
    postgres: SupervisedProcess[EmbeddedPostgres] | None
    """None on SQLite."""
    video_ids: list[str]

    @property
    def target(self) -> str:
        """All servers, as gRPC takes them."""
        return f"ipv4:{','.join(server.address for server in self.servers)}"

    def log_tails(self) -> str:
        """The ends of the servers' logs."""
        return "\n".join(f"-- {server.name}:\n{server.log_tail()}" for server in self.servers)


@asynccontextmanager
async def open_arena(database: str, *, server_count: int, **changes: Any) -> AsyncIterator[Arena]:
    """Starts it all in a temporary directory, and imports a catalogue; nothing is left of it at the end.

    Args:
        database: `sqlite` or `postgresql`.
        server_count: Servers, all on the same database and Redis.
        changes: Settings other than their defaults.

    Raises:
        SetupError: Something cannot be started.
        TimeoutError: The servers do not come up.
    """
    async with AsyncExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="keek-arena-")))
        stack = EmbeddedStack(_settings(directory).model_copy(update=changes))
        postgres = None
        if database == "postgresql":
            postgres = await resources.enter_async_context(running_postgres())
        await resources.enter_async_context(stack)
        settings = stack.settings
        if postgres is not None:
            settings = settings.model_copy(update={"database_url": postgres.service.url})
        servers = [
            ServerProcess(f"server-{i}", settings, directory / "data" / "logs") for i in range(server_count)
        ]
        for server in servers:
            running = asyncio.create_task(server.run(), name=server.name)
            resources.push_async_callback(cancel, running)
        assert stack.redis is not None
        videos = [f"v{i}" for i in range(_VIDEOS)]
        arena = Arena(settings, servers, stack.redis, postgres, videos)
        await _import(arena)
        yield arena


def _settings(directory: Path) -> Settings:
    models = directory / "models"
    models.mkdir()
    return Settings(
        data_dir=directory / "data",
        database_url=f"sqlite+aiosqlite:///{directory / 'data' / 'keek.db'}",
        model_repository=models,
        triton_environment=_TRITON_ENVIRONMENT,
        redis_url=None,
        triton_url=None,
        startup_timeout_s=60.0,
    )


async def _import(arena: Arena) -> None:
    """Through one server after the other, so that both are known to be up."""
    videos = [
        keek.Video(video_id=video_id, owner_id=f"o{i % 40}", tags=[_TAGS[i % 5], _TAGS[i % 3]])
        for i, video_id in enumerate(arena.video_ids)
    ]
    deadline = time.monotonic() + _UP_S
    for server in arena.servers:
        async with keek.aio.Client(server.address) as client:
            while True:
                try:
                    await client.import_videos(videos)
                    break
                except keek.UnavailableError as error:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{error}\n{arena.log_tails()}") from error
                    await asyncio.sleep(0.2)
