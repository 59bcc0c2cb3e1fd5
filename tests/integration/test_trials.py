"""Trials and new releases that go wrong: ended by themselves, and only where going back helps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from background import beside
from patience import eventually
from trial_serving import Releases, Server, canary, published, serving

from keek_server.releases.plan import Plan, Trial, TrialKind
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import TowerContract


@pytest.fixture(scope="module")
async def releases(
    unhurried_triton: None, settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Releases]:
    folder = tmp_path_factory.mktemp("trials")
    async with published(settings_in(folder), folder) as made:
        yield made


@pytest.fixture(autouse=True)
async def first_is_active(releases: Releases) -> None:
    await releases.activate_first()


@pytest.fixture
async def server(releases: Releases) -> AsyncIterator[Server]:
    async with serving(releases) as opened:
        yield opened


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
