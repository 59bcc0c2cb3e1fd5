"""Trials and new releases that go wrong: ended by themselves, and only where going back helps."""

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from background import beside, held_up
from gate_towers import ID_TABLE, user_tower, video_tower, written
from patience import DEADLINES, TIMEOUTS, eventually
from tritonclient.grpc import aio as triton

import keek.aio
from keek_server import metrics
from keek_server.app import App, open_app
from keek_server.embedded import EmbeddedStack
from keek_server.errors import FailedPreconditionError, UnavailableError
from keek_server.releases.live import LiveRelease
from keek_server.releases.manifest import Manifest
from keek_server.releases.opening import ReleaseOpener
from keek_server.releases.plan import Plan, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.retrieval.fresh import VECTORS
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import TowerContract
from keek_server.towers.control import control_headers
from keek_server.towers.users import UserInputs
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video, VideoState
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


@pytest.fixture(scope="module")
def unhurried() -> Iterator[None]:
    """What is well is not late, however long the machine pauses: after a late probe, a server goes back from
    nothing for as long as feeds are counted."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "towers.client._CHECK_DEADLINE_S",
            "releases.opening._PROBE_DEADLINE_S",
            "releases.fresh._DEADLINE_S",
            "releases.live._ASIDE_S",
        ):
            patch.setattr(f"keek_server.{name}", 30.0)
        yield


@pytest.fixture(scope="module")
async def releases(
    unhurried: None, settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Releases]:
    folder = tmp_path_factory.mktemp("trials")
    async with AsyncExitStack() as stack:
        settings = (await stack.enter_async_context(EmbeddedStack(settings_in(folder)))).settings
        database = await stack.enter_async_context(open_database(settings))
        data = open_dataset(DATA)
        await import_dataset(database, data)
        source = written(folder, user_tower(), video_tower(ID_TABLE, np.zeros((512, 64), np.float32)))
        first = await publish(source, settings)
        second, third = [await publish(source, settings, Wishes(activate=False)) for _ in range(2)]
        users = sorted(set(data.interactions["user_id"].to_pylist()))
        yield Releases(settings, database, ReleaseRegistry(database), first, second, third, users)


@pytest.fixture(autouse=True)
async def first_is_active(releases: Releases) -> None:
    plan = await releases.registry.plan()
    assert plan is not None
    if plan.release_id != releases.first.release_id or plan.trial is not None:
        await releases.registry.activate(releases.first.release_id, "")


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


@pytest.fixture
async def server(releases: Releases) -> AsyncIterator[Server]:
    async with serving(releases) as opened:
        yield opened


async def canary(releases: Releases, users: int) -> Plan:
    """Of so many users: whom a fixed share takes differs with the release's id, and may be hardly anybody."""

    def trial(hundredths: int) -> Trial:
        return Trial(releases.second.release_id, TrialKind.CANARY, hundredths / 100)

    def taken(hundredths: int) -> int:
        return sum(map(trial(hundredths).takes, releases.users))

    least = bisect_left(range(10_001), users, key=taken)
    return await releases.registry.start_trial(trial(least), "try")


async def plan_after(releases: Releases, seq: int) -> Plan:
    """The plan that somebody makes by itself."""
    async with asyncio.timeout(60):
        while True:
            plan = await releases.registry.plan()
            assert plan is not None
            if plan.seq > seq:
                return plan
            await asyncio.sleep(0.05)


async def test_a_canary_whose_feeds_fail_is_ended_with_its_figures_and_the_rest_goes_on(
    releases: Releases, server: Server
) -> None:
    plan = await canary(releases, 10)
    await server.carried_out(plan)
    await server.feeds(releases.users, rounds=2)
    async with releases.lost(releases.second):
        await server.feeds(releases.users, rounds=4)
        ended = await plan_after(releases, plan.seq)
        assert (ended.release_id, ended.trial) == (releases.first.release_id, None)
        assert f"by itself: canary {releases.second.release_id}: " in ended.reason
        assert "which failed" in ended.reason
        await server.carried_out(ended)
        assert set(await server.feeds(releases.users)) == {releases.first.release_id}


async def test_a_new_release_whose_feeds_fail_is_gone_back_from_by_one_of_two_servers(
    releases: Releases, server: Server
) -> None:
    async with serving(releases) as other:
        both = (server, other)
        for each in both:
            await each.feeds(releases.users)
        plan = await releases.registry.activate(releases.second.release_id, "new")
        for each in both:
            await each.carried_out(plan)
        async with releases.lost(releases.second):
            # A server that restarts meanwhile cannot serve the new one; these two have it open.
            for each in both:
                await each.feeds(releases.users, rounds=2)
            back = await plan_after(releases, plan.seq)
            assert (back.release_id, back.is_rollback) == (releases.first.release_id, True)
            for each in both:
                await each.carried_out(back)
                assert set(await each.feeds(releases.users)) == {releases.first.release_id}
            # Only one of them made a plan, and what was gone back to is not gone back from.
            await asyncio.sleep(0.5)
            assert await releases.registry.plan() == back


async def test_a_trial_that_cannot_be_opened_keeps_nothing_else_from_being_done(
    releases: Releases, server: Server
) -> None:
    live, first = server.app.live, releases.first.release_id
    await server.feeds(releases.users)
    await server.carried_out(await releases.registry.activate(releases.second.release_id, "new"))
    async with releases.lost(releases.third):
        trial = Trial(releases.third.release_id, TrialKind.CANARY, 1.0)
        plan = await releases.registry.start_trial(trial, "broken")
        live.pin([first])
        await eventually(lambda: bool(live.problem))
        await eventually(lambda: [each.release.id for each in live.served.pinned] == [first])
        assert live.served.seq != plan.seq
        async with releases.lost(releases.second):
            await server.feeds(releases.users, rounds=4)
            back = await plan_after(releases, plan.seq)
            assert (back.release_id, back.is_rollback) == (first, True)


async def test_a_triton_that_is_gone_is_no_reason_to_go_back(releases: Releases) -> None:
    # With the token, a look that is still under way at the plan that was carried out would bring it back.
    async with serving(releases, triton_control_token=None) as server:
        await server.feeds(releases.users)
        plan = await releases.registry.activate(releases.second.release_id, "new")
        await server.carried_out(plan)
        await releases.unload()
        try:
            await server.feeds(releases.users, rounds=2)
            await asyncio.sleep(0.5)
        finally:
            await releases.load()
        # Nor once it is back, while the feeds that failed are still counted.
        figures = server.app.figures.of(releases.second.release_id)
        assert figures.error_count > 0.9 * figures.feed_count >= 20
        await asyncio.sleep(0.5)
        assert await releases.registry.plan() == plan


async def test_a_canary_that_grows_loses_none_of_its_users_on_the_way(
    releases: Releases, server: Server
) -> None:
    small = await canary(releases, 6)
    await server.carried_out(small)
    assert small.trial is not None
    taken = [user for user in releases.users if small.trial.takes(user)]
    assert 6 <= len(taken) < len(releases.users)
    seen: set[str] = set()

    async def ask() -> None:
        while True:
            seen.update(server.app.live.serving(user).release.id for user in taken)
            await asyncio.sleep(0)

    async with beside(ask()):
        large = await canary(releases, len(releases.users))
        await server.carried_out(large)
    assert seen == {releases.second.release_id}
    assert set(await server.feeds(releases.users)) == {releases.second.release_id}


async def test_new_videos_and_deletions_reach_all_that_is_open(releases: Releases, server: Server) -> None:
    await server.carried_out(await releases.registry.activate(releases.second.release_id, ""))
    shadow = Trial(releases.first.release_id, TrialKind.SHADOW, 100.0)
    await server.carried_out(await releases.registry.start_trial(shadow, ""))
    held = server.app.live.served.held
    assert {each.release.id for each in held} == {releases.first.release_id, releases.second.release_id}
    catalogue = Catalogue(releases.database)
    await catalogue.put([Video("brand-new", "somebody", [], 5.0, "", 1_000_000, VideoState.READY)])
    await eventually(lambda: all(each.fresh.index.value("brand-new", VECTORS) is not None for each in held))
    await catalogue.delete("brand-new", "")
    await eventually(lambda: all("brand-new" in each.fresh.deleted for each in held))


async def test_a_server_that_starts_serves_the_plan_with_its_trial_whatever_triton_has_forgotten(
    releases: Releases,
) -> None:
    plan = await canary(releases, 8)
    assert plan.trial is not None
    for model in ("user_tower", "video_tower"):
        await releases.unload(model)
    async with serving(releases) as server:
        await server.carried_out(plan)
        expected = [
            releases.second.release_id if plan.trial.takes(user) else releases.first.release_id
            for user in releases.users
        ]
        assert await server.feeds(releases.users) == expected
        for user in releases.users:
            assert not (await server.client.list_feed(user)).degradations


async def test_without_the_control_token_a_model_that_is_gone_is_a_problem_and_nothing_else(
    releases: Releases,
) -> None:
    async with serving(releases, triton_control_token=None) as server:
        await releases.unload()
        try:
            async with asyncio.timeout(60):
                while "user_tower" not in server.app.live.problem:
                    server.app.live.notify()
                    await asyncio.sleep(0.05)
            feed = await server.client.list_feed(releases.users[0])
            assert feed.items
            assert feed.degradations
        finally:
            await releases.load()
        async with asyncio.timeout(60):
            while server.app.live.problem:
                server.app.live.notify()
                await asyncio.sleep(0.05)


async def test_a_release_that_cannot_serve_changes_nothing_and_is_taken_once_it_can(
    releases: Releases, server: Server
) -> None:
    async with releases.lost(releases.second):
        plan = await releases.registry.activate(releases.second.release_id, "too early")
        async with asyncio.timeout(60):
            while not server.app.live.problem:
                server.app.live.notify()
                await asyncio.sleep(0.02)
        version = releases.second.user_tower.version
        assert server.app.live.problem == f"Triton has no version {version} of user_tower in its repository"
        assert set(await server.feeds(releases.users)) == {releases.first.release_id}
    await server.carried_out(plan)
    assert set(await server.feeds(releases.users)) == {releases.second.release_id}


async def test_going_back_does_not_wait_for_a_release_that_triton_takes_long_to_load(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()
    check = TowerClient.check

    async def late(towers: TowerClient, tower: TowerContract, version: int) -> None:
        if version == releases.second.user_tower.version:
            waits.set()
            await asyncio.sleep(600)
        await check(towers, tower, version)

    # From the start on: where the second one was active before, a server would soon have it open.
    monkeypatch.setattr(TowerClient, "check", late)
    async with serving(releases) as server:
        await releases.registry.activate(releases.second.release_id, "late")
        waits.clear()
        server.app.live.notify()
        await asyncio.wait_for(waits.wait(), 60)
        plan = await releases.registry.roll_back("too late")
        await server.carried_out(plan)
        assert server.app.live.problem == ""
        assert set(await server.feeds(releases.users)) == {releases.first.release_id}
        # What was given up can be activated once it answers.
        monkeypatch.undo()
        await server.carried_out(await releases.registry.activate(releases.second.release_id, "in time"))
        assert set(await server.feeds(releases.users)) == {releases.second.release_id}


async def test_pins_that_change_while_others_are_seen_to_are_not_forgotten(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = releases.third.release_id
    # Nothing but what is said makes it look.
    async with serving(releases, release_poll_s=600.0) as server:
        live = server.app.live
        live.pin([third])
        await eventually(lambda: live.pinned(third) is not None)
        begun, go_on = held_up(monkeypatch, ReleaseOpener, "ensure_loaded")
        live.notify()
        await begun.wait()
        live.pin([])
        # So that it is seen before the work has ended.
        await asyncio.sleep(0.2)
        go_on.set()
        await eventually(lambda: live.pinned(third) is None)


async def test_a_release_whose_tower_is_gone_is_let_go_of_and_not_asked_any_more(
    releases: Releases, server: Server
) -> None:
    live, third = server.app.live, releases.third.release_id
    open_breakers = metrics.breakers_open.labels("triton")._value
    before = open_breakers.get()
    live.pin([third])
    await eventually(lambda: live.pinned(third) is not None)
    pinned = live.pinned(third)
    assert pinned is not None
    none = np.empty(0, np.float32)
    inputs = UserInputs("u1", np.empty((0, 64), np.float32), none.astype(np.int32), none)
    async with releases.lost(releases.third):

        async def is_left_alone() -> bool:
            with suppress(UnavailableError):
                await pinned.users.vector(inputs)
            return bool(open_breakers.get() > before)

        await eventually(is_left_alone)
        live.pin([])
        await eventually(lambda: live.pinned(third) is None)
        assert open_breakers.get() == before


async def test_a_release_that_is_opened_to_be_looked_at_has_what_changed_since(
    releases: Releases, server: Server
) -> None:
    catalogue = Catalogue(releases.database)
    await catalogue.put([Video("looked-at", "somebody", [], 5.0, "", 1_000_000, VideoState.READY)])
    async with server.app.live.opened(releases.third.release_id) as opened:
        assert opened.release.id == releases.third.release_id
        assert opened.fresh.index.value("looked-at", VECTORS) is not None
    assert releases.third.release_id not in {each.release.id for each in server.app.live.served.held}
    await catalogue.delete("looked-at", "")


async def test_a_release_whose_model_is_gone_cannot_be_looked_at_and_the_reason_is_said(
    releases: Releases, server: Server
) -> None:
    version = releases.third.user_tower.version
    async with releases.lost(releases.third):
        with pytest.raises(FailedPreconditionError, match=f"no version {version} of user_tower"):
            async with server.app.live.opened(releases.third.release_id):
                pass
    with pytest.raises(FailedPreconditionError, match=r"no release in .*manifest\.json is missing"):
        async with server.app.live.opened("removed"):
            pass


async def test_a_server_that_starts_opens_what_a_rollback_would_go_to(releases: Releases) -> None:
    await releases.registry.activate(releases.second.release_id, "new")
    async with serving(releases) as server:
        async with asyncio.timeout(60):
            while server.app.live.served.previous is None:
                server.app.live.notify()
                await asyncio.sleep(0.02)
        held = server.app.live.served.previous
        assert held.release.id == releases.first.release_id
        await server.carried_out(await releases.registry.roll_back(""))
        assert server.app.live.served.active is held
