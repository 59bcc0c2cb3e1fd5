"""Releases whose videos are searched in Milvus: published, served, swapped, removed, and Milvus gone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gate_towers import ID_TABLE, user_tower, video_tower, written
from milvus import connected, lite_path, served_lite
from patience import DEADLINES, TIMEOUTS, eventually
from pydantic import SecretStr

import keek.aio
from keek.v1.feed_service_pb2 import ListFeedResponse
from keek_server.app import App, open_app
from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError, UnavailableError
from keek_server.releases.manifest import Manifest
from keek_server.releases.release import INDEX_FILE, Release
from keek_server.retrieval.milvus_store import Milvus
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing import examination
from keek_training.publishing.journal import Journal
from keek_training.publishing.publish import Wishes, publish
from keek_training.publishing.source import TowerSource

pytestmark = pytest.mark.usefixtures("unhurried_triton")

INTERACTIONS = 600
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED


@dataclass
class World:
    """A server of Keek and a Milvus, which can go and come back, with one release in it."""

    settings: Settings
    sources: list[TowerSource]
    first: Manifest
    app: App
    client: keek.aio.Client
    milvus: Milvus
    file: Path
    running: ExitStack

    async def feed(self) -> ListFeedResponse:
        return await self.client.list_feed("u1", page_size=20)

    async def personalised(self, release: Manifest) -> bool:
        """Whether feeds are whole, and of this release."""
        feed = await self.feed()
        found = any(item.source == PERSONALISED for item in feed.items)
        return found and not feed.degradations and feed.release_id == release.release_id

    def aliased(self) -> str:
        """The collection that the alias stands for."""
        with self.milvus._calls("ask") as client:
            return str(client.describe_alias("keek_videos")["collection_name"])

    async def alias_is(self, release: Manifest) -> bool:
        return await asyncio.to_thread(self.aliased) == self.milvus.name_of(release.release_id)

    async def collections(self) -> set[str]:
        return set(await asyncio.to_thread(self.milvus.releases))


async def active_release(world: World) -> Manifest:
    """The manifest of the release that serves."""
    serving = await world.app.live.wait()
    return serving.release.manifest


@pytest.fixture(scope="module")
async def world(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("milvus")
    async with AsyncExitStack() as stack:
        embedded = await stack.enter_async_context(EmbeddedStack(settings_in(folder)))
        file = stack.enter_context(lite_path())
        running = stack.enter_context(ExitStack())
        url = running.enter_context(served_lite(file))
        settings = embedded.settings.model_copy(
            update={
                "listen": "127.0.0.1:0",
                "admin_token": SecretStr("secret"),
                "index_kind": "milvus",
                "index_exact_below": 50,
                "milvus_url": url,
                "milvus_deadline_s": 5.0,
                "reuse_user_vectors": False,  # every feed asks Milvus
                "releases_kept": 2,
                "release_poll_s": 0.2,
                "heartbeat_s": 0.2,
                **DEADLINES,
            }
        )
        async with open_database(settings) as database:
            data = open_dataset(f"synth:users=20,videos=200,interactions={INTERACTIONS},seed=1")
            await import_dataset(database, data)
        sources = []
        for number in range(1, 4):
            (folder / str(number)).mkdir()
            tables = ID_TABLE * np.float32(1 + number / 10)
            sources.append(written(folder / str(number), user_tower(), video_tower(table=tables)))
        first = await publish(sources[0], settings)
        app = await stack.enter_async_context(open_app(settings))
        client = await stack.enter_async_context(
            keek.aio.Client(f"127.0.0.1:{app.port}", admin_token="secret", timeouts=TIMEOUTS)
        )
        await asyncio.wait_for(app.live.wait(), 60)
        assert await app.projector.wait_for(INTERACTIONS, 60)
        milvus = stack.enter_context(connected(url))
        yield World(settings, sources, first, app, client, milvus, file, running)


async def test_a_release_in_milvus_is_served_from_there(world: World) -> None:
    index = world.first.index
    assert (index.kind, index.videos) == ("milvus", 200)
    assert index.nlist >= index.nprobe > 0
    assert index.recall_at_100 >= 0.99
    assert INDEX_FILE not in world.first.files_sha256
    (gate,) = [gate for gate in world.first.gates if gate.name == "recall"]
    assert (gate.value, gate.passed) == (index.recall_at_100, True)
    assert "(milvus)" in gate.detail
    await eventually(lambda: world.personalised(world.first))
    assert await world.alias_is(world.first)
    with pytest.raises(SetupError, match="is searched in Milvus: set KEEK_MILVUS_URL"):
        Release.open(world.settings.release_dir / world.first.release_id)


async def test_the_alias_goes_with_the_plan_and_collections_go_with_their_releases(world: World) -> None:
    second = await publish(world.sources[1], world.settings, Wishes(activate=False))
    assert await world.alias_is(world.first)
    assert await world.collections() == {world.first.release_id, second.release_id}
    assert (await world.client.activate_release(second.release_id)).converged
    await eventually(lambda: world.alias_is(second))
    await eventually(lambda: world.personalised(second))
    assert (await world.client.rollback_release()).converged
    await eventually(lambda: world.alias_is(world.first))
    await eventually(lambda: world.personalised(world.first))
    # Of three, nobody needs the one that was gone back from.
    third = await publish(world.sources[2], world.settings)
    assert await world.alias_is(third)
    await eventually(lambda: world.personalised(third))
    fourth = await publish(world.sources[1], world.settings)
    assert fourth.release_id != second.release_id
    left = await world.collections()
    assert left == {path.name for path in world.settings.release_dir.iterdir() if path.is_dir()}
    assert second.release_id not in left
    assert {third.release_id, fourth.release_id} <= left
    await eventually(lambda: world.personalised(fourth))


async def test_an_alias_that_cannot_be_switched_undoes_nothing_and_is_switched_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await active_release(world)
    # The server may be late to switch it to what was published last, and undo that for a moment.
    await eventually(lambda: world.alias_is(before))

    def refuses(*_: object) -> None:
        raise UnavailableError("not this time")

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "point_alias", refuses)
        release = await publish(world.sources[0], world.settings)
        await eventually(lambda: world.personalised(release))
        assert await world.alias_is(before)
    await eventually(lambda: world.alias_is(release))


async def test_what_a_publisher_left_half_filled_is_filled_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "build", breaks)
        with pytest.raises(SystemError):
            await publish(world.sources[0], world.settings)
    before = await world.collections()
    again = await publish(world.sources[0], world.settings)
    assert again.release_id in before
    await eventually(lambda: world.personalised(again))


async def test_a_refused_release_leaves_no_collection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await world.collections()

    async def refuses(*_: object) -> None:
        assert len(await world.collections()) == len(before) + 1
        raise SetupError("not this time")

    monkeypatch.setattr(examination.Examination, "before_serving", refuses)
    with pytest.raises(SetupError, match="not this time"):
        await publish(world.sources[1], world.settings)
    assert await world.collections() == before
    assert Journal.load(world.settings.release_dir) is None


async def test_without_milvus_feeds_go_on_and_are_personal_again_when_it_is_back(world: World) -> None:
    active = await active_release(world)
    serving = await world.app.live.wait()
    # It is given a second, which a pause may take.
    await eventually(lambda: world.app.live.answers(serving))
    world.running.close()
    feed = await world.feed()
    assert len(feed.items) == 20
    (degradation,) = feed.degradations
    assert degradation.source == PERSONALISED
    assert degradation.replaced_by
    assert all(item.source != PERSONALISED for item in feed.items)
    # No release is to blame, and none is gone back from.
    assert not await world.app.live.answers(serving)
    port = int(str(world.settings.milvus_url).rpartition(":")[2])
    with served_lite(world.file, port):
        # Milvus Lite forgets what was loaded.
        await eventually(lambda: world.personalised(active))
