"""Releases behind a real Triton, and servers that may or may not get to serve them."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gate_towers import ID_TABLE, user_tower, video_tower, written
from patience import DEADLINES, TIMEOUTS, eventually
from tritonclient.grpc import aio as triton

import keek.aio
from keek_server.app import App, open_app
from keek_server.embedded import EmbeddedStack
from keek_server.releases.live import LiveRelease
from keek_server.releases.manifest import Manifest
from keek_server.releases.plan import Plan, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.control import control_headers
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.publish import Wishes, publish

INTERACTIONS = 600
DATA = f"synth:users=20,videos=200,interactions={INTERACTIONS},seed=1"


@dataclass
class Releases:
    """Releases behind a Triton, and nobody who serves them yet."""

    settings: Settings
    database: Database
    registry: ReleaseRegistry
    first: Manifest
    second: Manifest
    third: Manifest
    """Which nobody ever activates."""
    users: list[str]

    async def activate_first(self) -> None:
        """As at the beginning, whatever a test left."""
        plan = await self.registry.plan()
        assert plan is not None
        if plan.release_id != self.first.release_id or plan.trial is not None:
            await self.registry.activate(self.first.release_id, "")

    @asynccontextmanager
    async def control(self) -> AsyncIterator[triton.InferenceServerClient]:
        assert self.settings.triton_url is not None
        async with triton.InferenceServerClient(self.settings.triton_url) as client:
            yield client

    async def load(self, model: str = "user_tower") -> None:
        async with self.control() as client:
            await client.load_model(model, headers=control_headers(self.settings.triton_control_token))

    async def unload(self, model: str = "user_tower") -> None:
        async with self.control() as client:
            await client.unload_model(model, headers=control_headers(self.settings.triton_control_token))

    @asynccontextmanager
    async def lost(self, release: Manifest) -> AsyncIterator[None]:
        """The user tower of a release is gone, from the repository and from Triton."""
        folder = self.settings.model_repository / "user_tower" / str(release.user_tower.version)
        aside = folder.rename(folder.with_name(f"aside-{folder.name}"))
        try:
            await self.load()
            yield
        finally:
            aside.rename(folder)
            await self.load()


@dataclass
class Server:
    """A server, and who asks it."""

    app: App
    client: keek.aio.Client

    async def feeds(self, users: Sequence[str], rounds: int = 1) -> list[str]:
        """The release of each feed."""
        return [(await self.client.list_feed(user)).release_id for _ in range(rounds) for user in users]

    async def carried_out(self, plan: Plan) -> None:
        async with asyncio.timeout(60):
            while self.app.live.served.seq != plan.seq:
                self.app.live.notify()
                await asyncio.sleep(0.02)


@asynccontextmanager
async def published(settings: Settings, folder: Path) -> AsyncIterator[Releases]:
    """A stack with three releases of the same towers, the first of which is active, until the block ends."""
    async with AsyncExitStack() as stack:
        # What is well is not late, however long the machine pauses: after a late probe, a server goes back
        # from nothing for as long as feeds are counted.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("opening._PROBE_DEADLINE_S", "fresh._DEADLINE_S", "live._ASIDE_S"):
            patch.setattr(f"keek_server.releases.{name}", 30.0)
        settings = (await stack.enter_async_context(EmbeddedStack(settings))).settings
        database = await stack.enter_async_context(open_database(settings))
        data = open_dataset(DATA)
        await import_dataset(database, data)
        source = written(folder, user_tower(), video_tower(ID_TABLE, np.zeros((512, 64), np.float32)))
        first = await publish(source, settings)
        second, third = [await publish(source, settings, Wishes(activate=False)) for _ in range(2)]
        users = sorted(set(data.interactions["user_id"].to_pylist()))
        yield Releases(settings, database, ReleaseRegistry(database), first, second, third, users)


@asynccontextmanager
async def serving(releases: Releases, **settings: object) -> AsyncIterator[Server]:
    own: dict[str, object] = {
        "listen": "127.0.0.1:0",
        # Nothing here waits for the poll.
        "release_poll_s": 30.0,
        # Towers that break have to be noticed with every feed.
        "reuse_user_vectors": False,
        "heartbeat_s": 0.1,
        "rollback_min_feeds": 20,
        "rollback_window_s": 600.0,
        **DEADLINES,
    }
    pin = LiveRelease.pin
    pinning: list[LiveRelease] = []

    def heard(live: LiveRelease, release_ids: Collection[str]) -> None:
        pin(live, release_ids)
        pinning.append(live)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveRelease, "pin", heard)
        async with (
            open_app(releases.settings.model_copy(update=own | settings)) as app,
            keek.aio.Client(f"127.0.0.1:{app.port}", timeouts=TIMEOUTS) as client,
        ):
            await asyncio.wait_for(app.live.wait(), 60)
            assert await app.projector.wait_for(INTERACTIONS, 60)
            # What a test pins is taken back when the experiments, of which there is none, are read first.
            await eventually(lambda: app.live in pinning)
            yield Server(app, client)


async def canary(releases: Releases, users: int) -> Plan:
    """Of so many users: whom a fixed share takes differs with the release's id, and may be hardly anybody."""

    def trial(hundredths: int) -> Trial:
        return Trial(releases.second.release_id, TrialKind.CANARY, hundredths / 100)

    def taken(hundredths: int) -> int:
        return sum(map(trial(hundredths).takes, releases.users))

    least = bisect_left(range(10_001), users, key=taken)
    return await releases.registry.start_trial(trial(least), "try")
