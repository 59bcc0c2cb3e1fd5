"""What a server has open: what the plan says, pins, what a rollback goes to, what is looked at."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from background import held_up
from patience import eventually
from trial_serving import Releases, Server, canary, published, serving

from keek_server import metrics
from keek_server.errors import FailedPreconditionError, UnavailableError
from keek_server.releases.opening import ReleaseOpener
from keek_server.releases.plan import Trial, TrialKind
from keek_server.retrieval.fresh import VECTORS
from keek_server.settings import Settings
from keek_server.towers.users import UserInputs
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video, VideoState


@pytest.fixture(scope="module")
async def releases(
    unhurried_triton: None, settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Releases]:
    folder = tmp_path_factory.mktemp("open")
    async with published(settings_in(folder), folder) as made:
        yield made


@pytest.fixture(autouse=True)
async def first_is_active(releases: Releases) -> None:
    await releases.activate_first()


@pytest.fixture
async def server(releases: Releases) -> AsyncIterator[Server]:
    async with serving(releases) as opened:
        yield opened


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
