"""Servers that follow the plan: swaps, rollbacks, canaries, shadows, and a Triton that forgot."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDevice
from gate_towers import user_tower, video_tower, written
from patience import DEADLINES, TIMEOUTS
from pydantic import SecretStr

import keek.aio
from keek.errors import PermissionDeniedError
from keek_server.app import App, open_app
from keek_server.embedded import EmbeddedStack
from keek_server.releases.plan import Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.gpu import GpuIndex
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import open_towers
from keek_server.towers.contract import DIMENSION, USER_TOWER
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.publish import Wishes, publish

pytestmark = pytest.mark.usefixtures("unhurried_triton")

INTERACTIONS = 600
USERS = [f"u{number}" for number in range(1, 21)]


@dataclasses.dataclass
class Fleet:
    """Two servers of one database, with two releases; the second one's towers are rotated."""

    settings: Settings
    database: Database
    apps: list[App]
    clients: list[keek.aio.Client]
    first: str
    second: str
    users: list[str]

    async def release_of(self, user_id: str, server: int = 0) -> str:
        return (await self.clients[server].list_feed(user_id)).release_id


def rotation() -> np.ndarray:
    drawn = np.random.default_rng(3).normal(size=(DIMENSION, DIMENSION))
    return np.linalg.qr(drawn)[0].astype(np.float32)


@asynccontextmanager
async def served(settings: Settings, name: str) -> AsyncIterator[tuple[App, keek.aio.Client]]:
    own = settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            "server_name": name,
            "admin_token": SecretStr("secret"),
            # What is announced is not waited for by polling.
            "release_poll_s": 40.0,
            "heartbeat_s": 0.3,
            **DEADLINES,
        }
    )
    async with (
        open_app(own) as app,
        keek.aio.Client(f"127.0.0.1:{app.port}", admin_token="secret", timeouts=TIMEOUTS) as client,
    ):
        await asyncio.wait_for(app.live.wait(), 60)
        assert await app.projector.wait_for(INTERACTIONS, 60)
        yield app, client


@pytest.fixture(scope="module")
async def fleet(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("live")
    async with AsyncExitStack() as stack:
        embedded = await stack.enter_async_context(EmbeddedStack(settings_in(folder)))
        settings = embedded.settings
        database = await stack.enter_async_context(open_database(settings))
        data = open_dataset(f"synth:users=20,videos=200,interactions={INTERACTIONS},seed=1")
        await import_dataset(database, data)
        turned = rotation()
        tables = np.random.default_rng(5).normal(size=(97, DIMENSION)).astype(np.float32)
        none = np.zeros((512, DIMENSION), np.float32)
        sources = []
        # Both give the same scores, and neither fits the other's vectors.
        for number, table in enumerate((tables, tables @ turned)):
            (folder / str(number)).mkdir()
            sources.append(written(folder / str(number), user_tower(), video_tower(table=table, clip=none)))
        first = await publish(sources[0], settings)
        second = await publish(sources[1], settings, Wishes(activate=False))
        opened = [await stack.enter_async_context(served(settings, name)) for name in ("one", "two")]
        users = sorted(set(data.interactions["user_id"].to_pylist()))
        yield Fleet(
            settings,
            database,
            [app for app, _ in opened],
            [client for _, client in opened],
            first.release_id,
            second.release_id,
            users,
        )


@pytest.fixture(autouse=True)
async def first_is_active(fleet: Fleet) -> None:
    plan = await ReleaseRegistry(fleet.database).plan()
    assert plan is not None
    if plan.release_id != fleet.first or plan.trial is not None:
        assert (await fleet.clients[0].activate_release(fleet.first)).converged


async def scores(fleet: Fleet, server: int, user_id: str) -> tuple[str, dict[str, float]]:
    feed = await fleet.clients[server].list_feed(user_id, page_size=20)
    assert {item.release_id for item in feed.items} == {feed.release_id}
    assert not feed.degradations
    chosen = keek.FeedSource.FEED_SOURCE_PERSONALISED
    return feed.release_id, {item.video_id: item.score for item in feed.items if item.source == chosen}


async def test_swaps_and_rollbacks_under_load_reach_all_servers_without_one_mixed_feed(fleet: Fleet) -> None:
    expected = {user_id: (await scores(fleet, 0, user_id))[1] for user_id in fleet.users}
    assert any(expected.values())
    seen: set[str] = set()
    stop = asyncio.Event()

    async def ask(server: int) -> int:
        count = 0
        while not stop.is_set():
            for user_id in fleet.users:
                release_id, found = await scores(fleet, server, user_id)
                seen.add(release_id)
                # Scores of two releases that were mixed are those of vectors that have nothing in common.
                for video_id in found.keys() & expected[user_id].keys():
                    assert found[video_id] == pytest.approx(expected[user_id][video_id], rel=1e-3, abs=1e-2)
                assert len(found.keys() & expected[user_id].keys()) >= len(found) - 1
                count += 1
        return count

    load = [asyncio.create_task(ask(server)) for server in (0, 1) for _ in range(2)]
    client = fleet.clients[0]
    for _ in range(3):
        rollout = await client.activate_release(fleet.second, reason="new")
        assert (rollout.converged, list(rollout.pending_servers)) == (True, [])
        assert {server.release_id for server in rollout.servers} == {fleet.second}
        assert [server.name for server in rollout.servers] == ["one", "two"]
        for server in (0, 1):
            assert (await scores(fleet, server, fleet.users[0]))[0] == fleet.second
        started = asyncio.get_running_loop().time()
        rollout = await client.rollback_release()
        assert rollout.converged
        # Far less than the poll: it was announced, and nothing had to be opened.
        assert asyncio.get_running_loop().time() - started < 10.0
        assert rollout.plan.is_rollback
        for server in (0, 1):
            assert (await scores(fleet, server, fleet.users[0]))[0] == fleet.first
    stop.set()
    assert all(await asyncio.gather(*load))
    assert seen == {fleet.first, fleet.second}


@pytest.mark.parametrize(("memory_mib", "copied_both"), [(1, False), (2, True)])
async def test_a_gpu_holds_what_serves_whether_or_not_it_has_room_for_two(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, memory_mib: int, copied_both: bool
) -> None:
    # No copy may be made that has no room; the device is a fake one.
    device = FakeDevice(capacity=memory_mib << 20, row_bytes=(1 << 20) // 200)
    monkeypatch.setattr("keek_server.retrieval.cuda.CudaDevice", lambda *_: device)
    # Every feed is searched for.
    own = {"index_gpu": 0, "index_gpu_memory_mib": memory_mib, "reuse_user_vectors": False}
    expected = await scores(fleet, 0, fleet.users[0])
    async with served(fleet.settings.model_copy(update=own), "three") as (app, client):

        def copied() -> dict[str, bool]:
            indexes = {each.release.id: each.release.index for each in app.live.served.held}
            return {name: isinstance(index, GpuIndex) and index.is_copied for name, index in indexes.items()}

        async def searched(release_id: str) -> None:
            async with asyncio.timeout(30):
                while copied() != {name: name == release_id or copied_both for name in copied()}:
                    await asyncio.sleep(0.05)
            before = device.searches
            feed = await client.list_feed(fleet.users[0], page_size=20)
            assert (feed.release_id, list(feed.degradations)) == (release_id, [])
            chosen = [item for item in feed.items if item.source == keek.FeedSource.FEED_SOURCE_PERSONALISED]
            found = {item.video_id: item.score for item in chosen if item.video_id in expected[1]}
            assert found == pytest.approx({each: expected[1][each] for each in found}, rel=1e-3, abs=1e-2)
            assert found
            assert device.searches > before

        await searched(fleet.first)
        assert (await client.activate_release(fleet.second)).converged
        await searched(fleet.second)
        # Before: what is opened for a rollback may have been copied, and given up for this plan.
        before = device.copies
        for release_id in (fleet.first, fleet.second):
            assert (await client.activate_release(release_id)).converged
            assert len(copied()) == 2
            await searched(release_id)
        assert device.most_used <= memory_mib << 20
        assert device.copies == before + (0 if copied_both else 2)
    assert device.used == 0


async def test_a_canary_takes_the_same_users_on_every_server(fleet: Fleet) -> None:
    await fleet.clients[1].start_canary(fleet.second, 30.0)
    trial = Trial(fleet.second, TrialKind.CANARY, 30.0)
    expected = {user: fleet.second if trial.takes(user) else fleet.first for user in fleet.users}
    assert set(expected.values()) == {fleet.first, fleet.second}
    for server in (0, 1):
        assert {user: await fleet.release_of(user, server) for user in fleet.users} == expected
    assert (await fleet.clients[0].end_trial()).converged
    assert {await fleet.release_of(user) for user in fleet.users} == {fleet.first}


async def test_a_shadow_is_compared_and_never_shown(fleet: Fleet) -> None:
    # Others may have been shown it before.
    shown = fleet.apps[0].figures.of(fleet.second).feed_count
    await fleet.clients[0].start_shadow(fleet.second, 100.0)
    async with asyncio.timeout(30):
        while True:
            assert {await fleet.release_of(user) for user in fleet.users[:5]} == {fleet.first}
            rollout = (await fleet.clients[0].list_releases()).rollout
            figures = {each.release_id: each for each in rollout.servers[0].figures}
            if fleet.second in figures and figures[fleet.second].compared_count >= 5:
                break
            await asyncio.sleep(0.2)
    # The same scores: what is shown is what would have been shown.
    assert figures[fleet.second].mean_overlap > 0.95
    assert figures[fleet.first].feed_count >= 5
    assert fleet.apps[0].figures.of(fleet.second).feed_count <= shown


async def test_a_trial_that_cannot_be_opened_is_a_problem_by_name_and_stops_nothing(fleet: Fleet) -> None:
    folder = fleet.settings.release_dir / fleet.second
    apps = fleet.apps
    # Not one of those that the servers have open.
    for app in apps:
        app.live.served = dataclasses.replace(app.live.served, previous=None)
    aside = folder.rename(folder.with_name("aside"))
    try:
        rollout = await fleet.clients[0].start_canary(fleet.second, 50.0, wait_s=1.0)
        async with asyncio.timeout(30):
            # Each says so at a heartbeat of its own.
            while not all("manifest.json is missing" in server.problem for server in rollout.servers):
                await asyncio.sleep(0.05)
                rollout = (await fleet.clients[0].list_releases()).rollout
        assert not rollout.converged
        assert list(rollout.pending_servers) == ["one", "two"]
        assert {await fleet.release_of(user) for user in fleet.users} == {fleet.first}
    finally:
        aside.rename(folder)


async def test_a_triton_that_forgot_a_model_is_asked_to_load_it(fleet: Fleet) -> None:
    from tritonclient.grpc import aio as triton

    from keek_server.towers.control import control_headers

    settings = fleet.settings
    assert settings.triton_url is not None
    async with triton.InferenceServerClient(settings.triton_url) as control:
        await control.unload_model("user_tower", headers=control_headers(settings.triton_control_token))
    version = fleet.apps[0].live.serving().release.manifest.user_tower.version
    async with open_towers(settings) as towers, asyncio.timeout(60):
        while not await towers.has(USER_TOWER, version):
            fleet.apps[0].live.notify()
            await asyncio.sleep(0.2)
    assert (await scores(fleet, 0, fleet.users[0]))[1]


@pytest.mark.parametrize("is_tried", [False, True])
async def test_what_comes_and_goes_reaches_all_releases_of_all_servers(fleet: Fleet, is_tried: bool) -> None:
    """Also what would be gone back to, and a canary."""
    if is_tried:
        await fleet.clients[0].start_canary(fleet.second, 30.0)
    else:
        await fleet.clients[0].activate_release(fleet.second)
    served = [app.live.served for app in fleet.apps]
    assert [own.trial is not None for own in served] == [is_tried] * 2
    held = [each for own in served for each in own.held]
    assert sorted(each.release.id for each in held) == sorted([fleet.first, fleet.second] * 2)
    new, gone = f"new-{is_tried}", next(iter((await scores(fleet, 0, fleet.users[0]))[1]))
    await fleet.clients[0].import_videos([keek.Video(video_id=new)])
    await fleet.clients[0].delete_video(gone)
    async with asyncio.timeout(30):
        while not all(
            gone in each.fresh.deleted and each.fresh.index.value(new, VECTORS) is not None for each in held
        ):
            await asyncio.sleep(0.05)


async def test_feeds_are_compared_side_by_side_by_those_who_may(fleet: Fleet) -> None:
    diffs = (await fleet.clients[0].diff_releases(fleet.first, fleet.second, fleet.users[:3])).diffs
    assert [diff.user_id for diff in diffs] == fleet.users[:3]
    for diff in diffs:
        assert {item.release_id for item in diff.items} == {fleet.first}
        assert {item.release_id for item in diff.other_items} == {fleet.second}
    target = f"127.0.0.1:{fleet.apps[0].port}"
    async with keek.aio.Client(target, timeouts=TIMEOUTS) as stranger:
        with pytest.raises(PermissionDeniedError):
            await stranger.rollback_release()
        assert (await stranger.list_releases()).rollout.converged


async def test_an_arm_that_pins_a_release_shows_it_to_its_users_on_all_servers(fleet: Fleet) -> None:
    client = fleet.clients[0]
    arms = [
        keek.Arm(name="active"),
        keek.Arm(name="second", parameters=keek.FeedParameters(release_id=fleet.second)),
    ]
    definition = keek.ExperimentDefinition(experiment_id="towers", traffic_percent=100.0, arms=arms)
    await client.create_experiment(definition)
    await client.start_experiment("towers")
    async with asyncio.timeout(30):
        # Until both have opened it: whose release is not there yet is in no arm.
        while {await arm_of(fleet, user, server) for user in fleet.users for server in (0, 1)} != {
            "towers/active",
            "towers/second",
        }:
            await asyncio.sleep(0.05)
    arms_of_users = {}
    for user in fleet.users:
        (arm,) = {await arm_of(fleet, user, server) for server in (0, 1)}
        release_id, _ = await scores(fleet, 0, user)
        assert release_id == {"towers/active": fleet.first, "towers/second": fleet.second}[arm]
        arms_of_users[user] = arm
    assert set(arms_of_users.values()) == {"towers/active", "towers/second"}
    # What is pinned stays when another release is activated, and goes with the experiment.
    assert (await client.activate_release(fleet.second)).converged
    assert (await client.activate_release(fleet.first)).converged
    await client.stop_experiment("towers")
    async with asyncio.timeout(30):
        while any(app.live.served.pinned for app in fleet.apps):
            await asyncio.sleep(0.05)
    assert {await fleet.release_of(user, server) for user in fleet.users for server in (0, 1)} == {
        fleet.first
    }


async def arm_of(fleet: Fleet, user_id: str, server: int) -> str:
    return (await fleet.clients[server].list_feed(user_id)).items[0].arm
