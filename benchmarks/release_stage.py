"""A stage for what releases do to feeds: a small release, really trained, a stack, and servers on it."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import keek
import keek.aio
from benchmarks.server_process import ServerProcess
from benchmarks.small_release import publish_small_release
from benchmarks.steady_load import cancel
from benchmarks.tower_files import TowerFiles, Towers
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.postgres import running_postgres
from keek_server.settings import Settings
from keek_training.runs import Run

_UP_S = 90.0
_POLL_S = 0.01
_FEED_SERVICE = "keek.v1.FeedService"
EMBEDDING: Final = b"embedding the corpus"
"""How the publisher's progress bar of that phase begins."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs."""

    settings: Settings
    servers: list[ServerProcess]
    towers: Towers
    """Those of the release that was published first."""
    history_length: int

    @property
    def addresses(self) -> list[str]:
        """Of the servers."""
        return [server.address for server in self.servers]

    def admin(self) -> keek.aio.Client:
        """A client of the first server that may change what serves."""
        token = self.settings.admin_token
        assert token is not None
        return keek.aio.Client(self.addresses[0], admin_token=token.get_secret_value())


@asynccontextmanager
async def open_stage(directory: Path, database: str, *, server_count: int) -> AsyncIterator[Stage]:
    """Trains, publishes, and serves; nothing runs any more when the block is left.

    Args:
        directory: Gets everything; the environment names it from here on.
        database: `sqlite` or `postgresql`.
        server_count: Servers on the same database, Redis and Triton.

    Raises:
        SetupError: A command fails, or something cannot be started.
        TimeoutError: The servers do not come up.
    """
    async with AsyncExitStack() as resources:
        if database == "postgresql":
            postgres = await resources.enter_async_context(running_postgres())
            os.environ["KEEK_DATABASE_URL"] = postgres.service.url
        await asyncio.to_thread(publish_small_release, directory)
        stack = await resources.enter_async_context(EmbeddedStack(Settings(startup_timeout_s=_UP_S)))
        settings = stack.settings
        servers = [
            ServerProcess(f"server-{i}", settings, settings.data_dir / "logs") for i in range(server_count)
        ]
        await asyncio.gather(*(resources.enter_async_context(serving(server)) for server in servers))
        run = Run.named("small", settings)
        towers = Towers.read(TowerFiles(run.user_tower, run.video_tower))
        yield Stage(settings, servers, towers, int(run.read_export()["history_length"]))


@asynccontextmanager
async def serving(server: ServerProcess) -> AsyncIterator[None]:
    """Has a server run, and serve, until the block is left.

    Raises:
        TimeoutError: It does not come up.
    """
    running = asyncio.create_task(server.run(), name=server.name)
    try:
        await _until_serving(server)
        yield
    finally:
        await cancel(running)


@dataclass(frozen=True, slots=True)
class Publication:
    """One run of `keek-train publish`; times are those of time.perf_counter()."""

    code: int
    output: str
    """Of both streams."""
    started: float
    ended: float
    embedding: tuple[float, float] | None
    """From when to when the corpus was embedded; None when it did not come so far."""

    @property
    def last_line(self) -> str:
        """What it ended with."""
        return self.output.strip().rpartition("\n")[2]


async def publish(files: TowerFiles, *options: str) -> Publication:
    """Publishes a pair by the command, as an engineer does, on the stack that runs."""
    command = Path(sys.executable).with_name("keek-train")
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        command,
        "publish",
        *files.arguments,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = bytearray()
    embedding: list[float] = []
    try:
        while chunk := await process.stdout.read(65_536):
            output += chunk
            if EMBEDDING in chunk:
                embedding = [*embedding[:1], time.perf_counter()]
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    phase = (embedding[0], embedding[-1]) if embedding else None
    text = output.decode("utf-8", "replace").replace("\r", "\n")
    return Publication(code, text, started, time.perf_counter(), phase)


async def answered_by(addresses: Sequence[str], user_id: str, is_it: Callable[[str], bool]) -> float:
    """Waits until every server has answered a feed from a release that is the one meant.

    Returns:
        time.perf_counter() when the last one had.
    """

    async def ask(address: str) -> float:
        async with keek.aio.Client(address) as client:
            while True:
                page = await client.list_feed(user_id, page_size=1)
                if is_it(page.release_id):
                    return time.perf_counter()
                await asyncio.sleep(_POLL_S)

    return max(await asyncio.gather(*map(ask, addresses)))


async def _until_serving(server: ServerProcess) -> None:
    deadline = time.monotonic() + _UP_S
    async with keek.aio.Client(server.address) as client:
        while time.monotonic() < deadline:
            try:
                if await client.check_health(_FEED_SERVICE):
                    return
            except keek.KeekError:
                pass  # not listening yet
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{server.name} does not serve:\n{server.log_tail()}")
