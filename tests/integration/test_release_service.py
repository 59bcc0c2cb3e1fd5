"""The ReleaseService on a real server: who may change what serves, and what is told about it."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
import sqlalchemy as sa
from patience import TIMEOUTS, eventually
from release_serving import TOKEN, WATCHERS, ReleaseServer, manifest, serve_releases

import keek.aio
from keek.v1 import release_service_pb2, release_service_pb2_grpc
from keek.v1.release_service_pb2 import Rollout, WatchReleasesResponse
from keek_server.clock import now_us
from keek_server.releases.fleet import Figures, ServerStatus
from keek_server.releases.manifest import GateResult
from keek_server.releases.plan import ReleaseState
from keek_server.rpc import releases as releases_module
from keek_server.storage.database import Database
from keek_server.storage.tables import activations, releases

RECALL = GateResult(
    name="recall", value=0.5, bound=0.95, comparison=">=", passed=False, detail="0.5 is under 0.95"
)
PARITY = GateResult(name="parity", value=None, bound=1e-4, comparison="<=", passed=True, detail="")


@pytest.fixture
async def server(database: Database) -> AsyncIterator[ReleaseServer]:
    """Knows the releases abc, bcd and xyz, oldest first, and the refused release rrr."""
    async with serve_releases(database) as running:
        for number, release_id in enumerate(("abc", "bcd", "xyz")):
            await running.registry.register(manifest(release_id, number))
        refused = manifest("rrr", 9, RECALL, PARITY, forced_reason="to see it")
        await running.registry.register(refused, ReleaseState.REFUSED)
        yield running


@pytest.fixture
async def client(server: ReleaseServer) -> AsyncIterator[keek.aio.Client]:
    async with keek.aio.Client(server.target, admin_token=TOKEN, retry=None, timeouts=TIMEOUTS) as opened:
        yield opened


async def plans(database: Database) -> int:
    async with database.read() as connection:
        counted = await connection.execute(sa.select(sa.func.count()).select_from(activations))
        return int(counted.scalar_one())


# -- what is told -----------------------------------------------------------------------------------
async def test_releases_are_paged_newest_first_and_each_is_there_once(client: keek.aio.Client) -> None:
    first = await client.list_releases(page_size=3)
    second = await client.list_releases(page_size=3, page_token=first.next_page_token)
    names = [[release.release_id for release in page.releases] for page in (first, second)]
    assert names == [["rrr", "xyz", "bcd"], ["abc"]]
    assert not second.next_page_token
    assert not first.HasField("rollout")
    assert [release.release_id async for release in client.iter_releases(page_size=1)] == [
        *names[0],
        *names[1],
    ]


@pytest.mark.parametrize("token", ["abc", "bm8gdGltZQ==", "LTEgYWJj", "NQ=="])
async def test_a_token_of_another_list_is_refused(client: keek.aio.Client, token: str) -> None:
    with pytest.raises(keek.InvalidArgumentError) as caught:
        await client.list_releases(page_token=token)
    assert caught.value.violations[0].field == "page_token"


async def test_a_release_says_what_its_manifest_says(client: keek.aio.Client) -> None:
    answer = await client.get_release("rrr")
    release = answer.release
    assert release.state == keek.ReleaseState.RELEASE_STATE_REFUSED
    assert (release.user_tower_version, release.video_tower_version) == (10, 11)
    assert (release.clip_image_version, release.dimension, release.video_count) == (0, 64, 1200)
    assert (release.source, release.forced_reason) == ("run monday", "to see it")
    assert release.create_time.ToMicroseconds() == 9_000_000
    recall, parity = release.gates
    assert (recall.name, recall.value, recall.comparison, recall.passed) == ("recall", 0.5, ">=", False)
    assert parity.passed
    assert not parity.HasField("value")
    assert json.loads(answer.manifest_json)["metrics"] == {"recall": 0.5}


async def test_a_manifest_of_another_keek_is_shown_as_far_as_it_is_understood(
    client: keek.aio.Client, database: Database
) -> None:
    odd = {
        "user_tower": 7,
        "video_tower": {"version": 3, "format": "new"},
        "clip": None,
        "dimension": "64",
        "index": {"videos": -1},
        "gates": [{"name": "recall"}, 5, PARITY.model_dump() | {"more": 1}],
    }
    row = {"release_id": "odd", "create_time_us": 5, "manifest": odd, "state": ReleaseState.READY}
    async with database.write() as connection:
        await connection.execute(releases.insert().values(row))
    answer = await client.get_release("odd")
    assert (answer.release.user_tower_version, answer.release.video_tower_version) == (0, 3)
    assert (answer.release.dimension, answer.release.video_count) == (0, 0)
    assert [gate.name for gate in answer.release.gates] == ["parity"]
    assert json.loads(answer.manifest_json) == odd


async def test_a_release_that_is_not_registered_is_not_found(client: keek.aio.Client) -> None:
    with pytest.raises(keek.NotFoundError, match="'none'"):
        await client.get_release("none")
    with pytest.raises(keek.NotFoundError, match="'none'"):
        await client.activate_release("none")


# -- changes ----------------------------------------------------------------------------------------
async def test_a_change_is_answered_when_every_server_has_carried_it_out(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    late = server.followers["web-2"]
    late.follows.clear()
    change = asyncio.create_task(client.activate_release("abc", reason="it is good"))
    await asyncio.sleep(0.3)
    assert not change.done()
    late.follows.set()
    rollout = await change
    assert (rollout.converged, list(rollout.pending_servers)) == (True, [])
    assert (rollout.plan.release_id, rollout.plan.reason) == ("abc", "it is good")
    seen = {server.name: (server.release_id, server.plan_seq) for server in rollout.servers}
    assert seen == dict.fromkeys(("web-1", "web-2"), ("abc", rollout.plan.plan_seq))
    assert server.announcements.count == 1
    listed = (await client.list_releases()).rollout
    assert listed.plan == rollout.plan


async def test_servers_that_do_not_follow_in_time_are_named_with_what_holds_them_up(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    late = server.followers["web-2"]
    late.follows.clear()
    late.problem = "Triton does not have it"
    rollout = await client.activate_release("abc", wait_s=3.0)
    assert not rollout.converged
    assert "web-2" in rollout.pending_servers

    async def one_is_left() -> bool:
        # A pause of three seconds holds up the other one, too.
        told = (await client.list_releases()).rollout
        problems = [server.problem for server in told.servers]
        return (list(told.pending_servers), problems) == (["web-2"], ["", late.problem])

    await eventually(one_is_left)
    assert await server.registry.active() == "abc"


async def test_waiting_ends_before_the_callers_deadline(
    client: keek.aio.Client, server: ReleaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half a second for the answer is enough for people, and may pass here before it is sent.
    monkeypatch.setattr(releases_module, "_ANSWER_S", 5.0)
    server.followers["web-1"].follows.clear()
    started = time.monotonic()
    rollout = await client.activate_release("abc", wait_s=60.0, timeout_s=6.0)
    assert 0.5 < time.monotonic() - started < 6.0
    assert list(rollout.pending_servers) == ["web-1"]


async def test_what_cannot_be_announced_is_changed_all_the_same(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    server.announcements.fails = True
    assert (await client.activate_release("abc")).converged


async def test_a_repeated_request_changes_nothing_more(
    client: keek.aio.Client, server: ReleaseServer, database: Database
) -> None:
    request_id = str(uuid.uuid4())
    first = await client.activate_release("abc", request_id=request_id)
    await client.activate_release("bcd")
    again = await client.activate_release("abc", request_id=request_id)
    assert again.plan == first.plan
    assert await plans(database) == 2
    assert await server.registry.active() == "bcd"


async def test_trials_and_rollbacks_go_the_way_of_the_registry(client: keek.aio.Client) -> None:
    await client.activate_release("abc")
    await client.activate_release("bcd")
    canary = await client.start_canary("xyz", 5.0)
    trial = canary.plan.trial
    assert (canary.plan.release_id, trial.release_id, trial.percent) == ("bcd", "xyz", 5.0)
    assert trial.kind == keek.TrialKind.TRIAL_KIND_CANARY
    assert {server.trial_release_id for server in canary.servers} == {"xyz"}
    shadow = await client.start_shadow("xyz", 20.0)
    assert shadow.plan.trial.kind == keek.TrialKind.TRIAL_KIND_SHADOW
    assert not (await client.end_trial()).plan.HasField("trial")
    back = await client.rollback_release(reason="bad feeds")
    assert (back.plan.release_id, back.plan.is_rollback, back.plan.reason) == ("abc", True, "bad feeds")
    with pytest.raises(keek.FailedPreconditionError, match="no release was active before abc"):
        await client.rollback_release()
    with pytest.raises(keek.FailedPreconditionError, match="no release is tried"):
        await client.end_trial()
    with pytest.raises(keek.FailedPreconditionError, match="rrr was refused"):
        await client.start_canary("rrr", 5.0)
    for percent in (0.0, -1.0, 101.0, float("nan")):
        with pytest.raises(keek.InvalidArgumentError, match="percent"):
            await client.start_canary("xyz", percent)


# -- who may ----------------------------------------------------------------------------------------
CHANGES = (
    ("activate_release", ("abc",)),
    ("rollback_release", ()),
    ("start_canary", ("bcd", 5.0)),
    ("start_shadow", ("bcd", 5.0)),
    ("end_trial", ()),
    ("diff_releases", ("abc", "bcd", ["u1"])),
)


@pytest.mark.parametrize(
    ("token", "message"), [(None, "none was sent"), ("x" * 20, "is not that of"), (TOKEN[:-1], "is not that")]
)
async def test_without_the_token_nothing_is_changed_and_no_feed_is_shown(
    server: ReleaseServer, database: Database, token: str | None, message: str
) -> None:
    async with keek.aio.Client(server.target, admin_token=token) as client:
        for name, arguments in CHANGES:
            with pytest.raises(keek.PermissionDeniedError, match=f"{message}.*") as caught:
                await getattr(client, name)(*arguments)
            assert "KEEK_ADMIN_TOKEN" in caught.value.message
            assert TOKEN not in caught.value.message
        assert await client.get_release("abc")
        assert len((await client.list_releases()).releases) == 4
    assert await plans(database) == 0
    assert server.feeds.opened == []


@pytest.mark.parametrize("configured", [None, ""])
async def test_a_server_without_a_token_takes_no_changes_from_anyone(
    database: Database, configured: str | None
) -> None:
    async with (
        serve_releases(database, token=configured) as server,
        keek.aio.Client(server.target, admin_token=TOKEN) as client,
    ):
        for name, arguments in CHANGES:
            with pytest.raises(keek.PermissionDeniedError, match="KEEK_ADMIN_TOKEN is not set there"):
                await getattr(client, name)(*arguments)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (f"bearer {TOKEN}", grpc.StatusCode.NOT_FOUND),
        (f"Bearer  {TOKEN} ", grpc.StatusCode.NOT_FOUND),
        (f"Basic {TOKEN}", grpc.StatusCode.PERMISSION_DENIED),
        (TOKEN, grpc.StatusCode.PERMISSION_DENIED),
        ("Bearer", grpc.StatusCode.PERMISSION_DENIED),
        ("", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_the_token_is_shown_as_a_bearer_token(
    server: ReleaseServer, header: str, code: grpc.StatusCode
) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub = release_service_pb2_grpc.ReleaseServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ActivateRelease(
                release_service_pb2.ActivateReleaseRequest(release_id="none"),
                metadata=(("authorization", header),),
            )
        assert caught.value.code() == code


# -- watching ---------------------------------------------------------------------------------------
async def test_a_watch_tells_of_changes_and_of_nothing_else(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    async with aclosing(client.watch_releases(timeout_s=30.0)) as states:
        assert not (await anext(states)).HasField("rollout")
        await client.activate_release("abc")
        now = await _until(states, lambda rollout: rollout.converged)
        assert [server.release_id for server in now.servers] == ["abc", "abc"]
        # Servers go on saying what they said: that alone is nothing to tell.
        quiet = asyncio.create_task(anext(states))
        await asyncio.sleep(0.3)
        assert not quiet.done()
        figures = {"abc": Figures(feed_count=10, error_count=1)}
        newcomer = ServerStatus("3", "web-3", 0, now_us(), now.plan.plan_seq, "abc", figures=figures)
        await server.fleet.beat(newcomer)
        told = await quiet
        assert [server.name for server in told.rollout.servers] == ["web-1", "web-2", "web-3"]
        assert told.rollout.servers[2].figures[0].error_count == 1


async def _until(states: AsyncIterator[WatchReleasesResponse], holds: object) -> Rollout:
    assert callable(holds)
    while not holds(rollout := (await anext(states)).rollout):
        pass
    return rollout


async def test_who_watches_too_much_is_refused_and_who_leaves_makes_room(client: keek.aio.Client) -> None:
    watching = [client.watch_releases() for _ in range(WATCHERS)]
    for states in watching:
        await anext(states)
    with pytest.raises(keek.ResourceExhaustedError, match="WatchReleases"):
        await anext(client.watch_releases())
    await watching[0].aclose()
    async with asyncio.timeout(10):
        while True:
            states = client.watch_releases()
            try:
                await anext(states)
            except keek.ResourceExhaustedError:
                await asyncio.sleep(0.02)
            else:
                break
    await states.aclose()
    await watching[1].aclose()


# -- feeds side by side -----------------------------------------------------------------------------
async def test_feeds_stand_side_by_side_with_what_they_share(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    answer = await client.diff_releases("abc", "bcd", ["u1", "u2", "u1"])
    assert [diff.user_id for diff in answer.diffs] == ["u1", "u2"]
    diff = answer.diffs[0]
    assert [item.video_id for item in diff.items] == ["u1-a", "u1-b", "u1-c"]
    assert [item.video_id for item in diff.other_items] == ["u1-b", "u1-c", "u1-d"]
    assert {item.release_id for item in diff.items} == {"abc"}
    assert diff.overlap == pytest.approx(2 / 3)
    assert server.feeds.opened == server.feeds.closed[::-1] == ["abc", "bcd"]
    short = await client.diff_releases("abc", "xyz", ["u1"], page_size=2)
    assert (len(short.diffs[0].items), short.diffs[0].overlap) == (2, 0.0)


async def test_many_users_are_compared_a_few_at_a_time(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    users = [f"u{number}" for number in range(100)]
    answer = await client.diff_releases("abc", "bcd", users)
    assert [diff.user_id for diff in answer.diffs] == users
    assert 1 < server.feeds.most_at_once <= 4
    with pytest.raises(keek.InvalidArgumentError, match="at most 100"):
        await client.diff_releases("abc", "bcd", [*users, "one more"])


async def test_only_releases_with_files_are_compared_and_a_fault_is_told_once(
    client: keek.aio.Client, server: ReleaseServer
) -> None:
    with pytest.raises(keek.FailedPreconditionError, match="rrr has no files"):
        await client.diff_releases("abc", "rrr", ["u1"])
    with pytest.raises(keek.NotFoundError, match="'none'"):
        await client.diff_releases("none", "abc", ["u1"])
    with pytest.raises(keek.UnavailableError, match="no feed for this one"):
        await client.diff_releases("abc", "bcd", ["u1", "unlucky"])
    # The place was given back each time.
    assert len((await client.diff_releases("abc", "bcd", ["u1"])).diffs) == 1
