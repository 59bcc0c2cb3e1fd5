"""Releases of any size that are served: made up, but for the towers, which Triton runs.

The videos' vectors are drawn as trained towers give them (`retrieval_corpus`), not computed, and the
user tower has the size that training gives it, but is not trained: neither changes what a feed costs.
"""

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

import keek
import keek.aio
from benchmarks.bulk_corpus import export_towers
from benchmarks.feed_users import Events, user_id
from benchmarks.retrieval_corpus import Built, make
from benchmarks.server_process import ServerProcess
from benchmarks.steady_load import cancel
from keek_server.clock import now_us
from keek_server.embedded import EmbeddedStack
from keek_server.releases.manifest import Manifest, TowerVersion
from keek_server.releases.registry import ReleaseRegistry
from keek_server.retrieval.build import IndexOptions
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import catalogue_clock, interactions, videos
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_server.videos.video import VideoState
from keek_training.publishing.repository import write_version
from keek_training.runs import Run

VERSION: Final = 1
"""Of both towers."""

_ROOT = Path(__file__).parents[1]
_RELEASE = "made"
_UP_S = 60.0
_PROJECTED_S = 900.0
_POLL_S = 0.5
_ROWS = 20_000
_PROJECTED = re.compile(r"^keek_projection_seq (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Stage:
    """A Triton with both towers, and a Redis."""

    directory: Path
    settings: Settings
    towers: Mapping[TowerContract, TowerVersion]
    history_length: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A release, with a database and a folder of its own."""

    settings: Settings
    built: Built
    video_ids: list[str]
    interactions: int
    """In its log."""


@asynccontextmanager
async def open_stage(directory: Path, videos: int) -> AsyncIterator[Stage]:
    """Exports the towers and starts the stack; it has stopped when the block is left.

    Args:
        directory: Gets everything.
        videos: What the towers' tables are filled with.

    Raises:
        SetupError: When something cannot be started.
    """
    run = await asyncio.to_thread(export_towers, directory, videos)
    repository = directory / "models"
    towers = {
        tower: _write(repository, tower, path)
        for tower, path in ((USER_TOWER, run.user_tower), (VIDEO_TOWER, run.video_tower))
    }
    settings = Settings(
        data_dir=directory / "data",
        model_repository=repository,
        triton_environment=_ROOT / ".venv-triton",
        triton_url=None,
        redis_url=None,
        startup_timeout_s=_UP_S,
    )
    async with EmbeddedStack(settings) as stack:
        yield Stage(directory, stack.settings, towers, _history_length(run))


async def make_catalogue(stage: Stage, count: int, events: Events) -> Catalogue:
    """A release of `count` videos, registered and active, whose users have done what the events say."""
    data_dir = stage.directory / f"videos-{count}"
    own = {
        "data_dir": data_dir,
        "database_url": f"sqlite+aiosqlite:///{data_dir / 'keek.db'}",
        "media_url": str(data_dir / "media"),
        "redis_prefix": f"videos-{count}",
    }
    settings = stage.settings.model_copy(update=own)
    folder = settings.release_dir / _RELEASE
    folder.mkdir(parents=True)
    (data_dir / "logs").mkdir()
    built = await asyncio.to_thread(make, folder, count, IndexOptions.of(settings))
    manifest = Manifest(
        release_id=_RELEASE,
        create_time_us=now_us(),
        user_tower=stage.towers[USER_TOWER],
        video_tower=stage.towers[VIDEO_TOWER],
        history_length=stage.history_length,
        metrics={},
        source="made up",
        dimension=DIMENSION,
        catalogue_seq=count,
        log_seq=len(events.users),
        index=built.report,
        files_sha256={},
    )
    manifest.save(folder)
    ids = built.corpus().ids
    video_ids = [ids.id_of(row) for row in range(count)]
    # What takes a server milliseconds may take this machine longer while it fills the tables.
    async with open_database(settings.model_copy(update={"sql_deadline_s": _UP_S})) as database:
        await _insert(database, videos, _video_rows(video_ids))
        async with database.write() as connection:
            await connection.execute(catalogue_clock.update().values(seq=count))
        await _insert(database, interactions, _interaction_rows(events, video_ids))
        registry = ReleaseRegistry(database)
        await registry.register(manifest)
        await registry.activate(_RELEASE, "a benchmark")
    return Catalogue(settings, built, video_ids, len(events.users))


@asynccontextmanager
async def serving(
    catalogue: Catalogue,
    name: str,
    changes: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> AsyncIterator[ServerProcess]:
    """A server of this release.

    Args:
        catalogue: What it serves.
        name: Names its log file.
        changes: Settings that it has beside the catalogue's.
        options: Of `keek-server serve`.

    Raises:
        TimeoutError: When it does not come up.
    """
    settings = catalogue.settings.model_copy(update=dict(changes or {}))
    server = ServerProcess(name, settings, settings.data_dir / "logs", options)
    async with AsyncExitStack() as resources:
        running = asyncio.create_task(server.run(), name=name)
        resources.push_async_callback(cancel, running)
        await _until(server, lambda: _serves(server), _UP_S)
        yield server


async def wait_until_projected(server: ServerProcess, catalogue: Catalogue) -> None:
    """Waits for the whole log to be in the projection, where it stays for servers that come later.

    Raises:
        TimeoutError: When it takes longer than a quarter of an hour.
    """
    await _until(server, lambda: _has_projected(server, catalogue.interactions), _PROJECTED_S)


def _history_length(run: Run) -> int:
    return int(run.read_export()["history_length"])


def _write(repository: Path, tower: TowerContract, model: Path) -> TowerVersion:
    folder = repository / tower.model
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_bytes(
        (_ROOT / "model_repository" / tower.model / "config.pbtxt").read_bytes()
    )
    return write_version(repository, tower, VERSION, model)


def _video_rows(video_ids: list[str]) -> Iterator[dict[str, Any]]:
    empty = {"title": "", "original_url": "", "poster_url": "", "language": "", "region": ""}
    sizes = {"width": 0, "height": 0, "duration_s": 10.0, "create_time_us": 0, "state": VideoState.READY}
    for row, video_id in enumerate(video_ids):
        own = {"video_id": video_id, "owner_id": f"owner-{row % 50_000}", "tags": []}
        yield {**own, **empty, **sizes, "change_seq": row + 1}


def _interaction_rows(events: Events, video_ids: list[str]) -> Iterator[dict[str, Any]]:
    columns = (events.users, events.videos, events.kinds, events.times_us)
    for number, (user, video, kind, time_us) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        yield {
            "event_id": uuid.UUID(int=number),
            "user_id": user_id(user),
            "video_id": video_ids[video],
            "kind": kind,
            "event_time_us": time_us,
            "record_time_us": time_us,
            "region": "",
            "tags": [],
        }


async def _insert(database: Database, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    rows = iter(rows)
    while part := list(islice(rows, _ROWS)):
        async with database.write() as connection:
            await connection.execute(table.insert(), part)


async def _serves(server: ServerProcess) -> bool:
    async with keek.aio.Client(server.address) as client:
        try:
            return await client.check_health("keek.v1.FeedService")
        except keek.KeekError:
            return False  # not listening yet


async def _has_projected(server: ServerProcess, rows: int) -> bool:
    found = _PROJECTED.search(await server.metrics())
    return found is not None and float(found[1]) >= rows


async def _until(server: ServerProcess, holds: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.name} is not ready after {timeout_s:g} s:\n{server.log_tail()}")
        await asyncio.sleep(_POLL_S)
