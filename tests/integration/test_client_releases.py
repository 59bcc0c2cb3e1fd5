"""Releases through both clients and the command line, on a real server."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from client_drivers import DRIVERS, Driver
from client_program import Done, finish, interruptible_programs, run_keek, start
from release_serving import TOKEN, ReleaseServer, manifest, serve_releases

import keek
from keek_server.clock import now_us
from keek_server.releases.fleet import Figures, ServerStatus
from keek_server.releases.manifest import GateResult
from keek_server.releases.plan import ReleaseState, Trial, TrialKind
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import activations

RECALL = GateResult(
    name="recall", value=0.5, bound=0.95, comparison=">=", passed=False, detail="0.5 is under 0.95"
)
PARITY = GateResult(name="parity", value=1e-6, bound=1e-4, comparison="<=", passed=True, detail="of 8 users")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    (tmp_path / "data").mkdir()
    # The followers write all the time, and one write that is too late would end them.
    async with open_database(Settings(data_dir=tmp_path / "data", sql_deadline_s=30.0)) as opened:
        yield opened


@pytest.fixture
async def server(database: Database) -> AsyncIterator[ReleaseServer]:
    """Knows the releases abc, bcd and xyz, oldest first, and the refused release rrr."""
    async with serve_releases(database) as running:
        for number, release_id in enumerate(("abc", "bcd", "xyz")):
            await running.registry.register(manifest(release_id, number, PARITY))
        await running.registry.register(manifest("rrr", 9, PARITY, RECALL), ReleaseState.REFUSED)
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, server: ReleaseServer) -> AsyncIterator[Driver]:
    driver = request.param(server.target, admin_token=TOKEN)
    yield driver
    await driver.close()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "admin.token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture
def interruptible() -> Iterator[None]:
    with interruptible_programs():
        yield


# -- both clients -----------------------------------------------------------------------------------
async def test_all_releases_come_page_after_page(client: Driver, server: ReleaseServer) -> None:
    found = await client.collect("iter_releases", page_size=3)
    assert [release.release_id for release in found] == ["rrr", "xyz", "bcd", "abc"]
    assert server.answers.calls["ListReleases"] == 2
    one = await client.call("get_release", "rrr")
    assert one.release == found[0]


async def test_every_change_gives_the_rollout(client: Driver) -> None:
    first = await client.call("activate_release", "abc", reason="first")
    assert isinstance(first, keek.Rollout)
    assert (first.plan.release_id, first.plan.reason, first.converged) == ("abc", "first", True)
    await client.call("activate_release", "bcd")
    canary = await client.call("start_canary", "xyz", 5.0)
    assert canary.plan.trial.kind == keek.TrialKind.TRIAL_KIND_CANARY
    shadow = await client.call("start_shadow", "xyz", 7.5)
    trial = shadow.plan.trial
    assert (trial.kind, trial.percent) == (keek.TrialKind.TRIAL_KIND_SHADOW, 7.5)
    ended = await client.call("end_trial")
    assert not ended.plan.HasField("trial")
    back = await client.call("rollback_release", wait_s=5.0)
    assert (back.plan.release_id, back.plan.is_rollback) == ("abc", True)


async def test_a_change_whose_answer_was_lost_is_made_once(
    client: Driver, server: ReleaseServer, database: Database
) -> None:
    server.answers.left = 2
    rollout = await client.call("activate_release", "abc")
    assert rollout.plan.release_id == "abc"
    assert server.answers.calls["ActivateRelease"] == 3
    async with database.read() as connection:
        rows = (await connection.execute(sa.select(activations.c.seq))).scalars().all()
    assert rows == [rollout.plan.plan_seq]


async def test_the_token_is_sent_with_the_calls_that_need_it_alone(
    client: Driver, server: ReleaseServer
) -> None:
    await client.collect("iter_releases")
    await client.call("get_release", "abc")
    await client.take(1, "watch_releases")
    await client.call("activate_release", "abc")
    await client.call("diff_releases", "abc", "bcd", ["u1"])
    shown = f"Bearer {TOKEN}"
    assert server.answers.tokens == {
        "ListReleases": "",
        "GetRelease": "",
        "WatchReleases": "",
        "ActivateRelease": shown,
        "DiffReleases": shown,
    }


async def test_a_watch_begins_with_what_is_and_goes_on_with_what_changes(client: Driver) -> None:
    await client.call("activate_release", "abc")
    states = client.client.watch_releases()
    assert (await client.next_of(states)).rollout.plan.release_id == "abc"
    await client.call("activate_release", "bcd")
    while (await client.next_of(states)).rollout.plan.release_id != "bcd":
        pass
    if isinstance(client.client, keek.Client):
        states.close()  # type: ignore[union-attr]
    else:
        await states.aclose()  # type: ignore[union-attr]


async def test_feeds_are_compared(client: Driver) -> None:
    answer = await client.call("diff_releases", "abc", "bcd", iter(["u1"]), page_size=2)
    assert [item.video_id for item in answer.diffs[0].other_items] == ["u1-b", "u1-c"]
    assert answer.diffs[0].overlap == 0.5


async def test_the_deadline_of_a_change_leaves_room_for_what_it_waits(
    client: Driver, server: ReleaseServer
) -> None:
    server.followers["web-1"].follows.clear()
    quick = type(client)(
        server.target, admin_token=TOKEN, timeouts=keek.Timeouts(change_release_s=5.0), retry=None
    )
    rollout = await quick.call("activate_release", "abc", wait_s=5.5)
    assert list(rollout.pending_servers) == ["web-1"]
    await quick.close()


async def test_a_misspelt_option_is_an_error(client: Driver, server: ReleaseServer) -> None:
    with pytest.raises(TypeError, match="resaon"):
        await client.call("activate_release", "abc", resaon="typo")
    assert not server.answers.calls


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("token", ["", "two words", "new\nline", "kéy"])
def test_what_cannot_be_a_token_is_refused_at_once(driver: type[Driver], token: str) -> None:
    with pytest.raises(ValueError, match="admin token"):
        driver("localhost:1", admin_token=token)


# -- the command line -------------------------------------------------------------------------------
async def test_releases_are_listed_with_what_serves_and_the_servers_below(server: ReleaseServer) -> None:
    await server.registry.activate("abc", "it is good")
    await server.registry.start_trial(Trial("xyz", TrialKind.CANARY, 5.0), "try")
    plan = await server.registry.plan()
    assert plan is not None
    assert (await server.fleet.settled(plan, wait_s=10.0)).converged
    for arguments in (["releases"], ["releases", "list"]):
        done = await run_keek(server.target, *arguments)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert lines[0].split() == ["RELEASE", "STATE", "SERVES", "CREATED", "VIDEOS", "GATES", "SOURCE"]
        assert [line.split()[:2] for line in lines[1:5]] == [
            ["rrr", "refused"],
            ["xyz", "ready"],
            ["bcd", "ready"],
            ["abc", "ready"],
        ]
        assert "1 of 2, not recall" in lines[1]
        assert "canary 5 %" in lines[2]
        assert "active" in lines[4]
        assert lines[6].startswith("plan 2: abc serves, xyz is canary 5 %, since ")
        assert lines[6].endswith(": try")
        assert [line.split() for line in lines[7:]] == [
            ["SERVER", "RELEASE", "TRIAL", "PLAN", "STATUS"],
            ["web-1", "abc", "xyz", "2", "ok"],
            ["web-2", "abc", "xyz", "2", "ok"],
        ]


async def test_releases_are_listed_up_to_a_count_and_as_json(server: ReleaseServer) -> None:
    done = await run_keek(server.target, "releases", "list", "--count", "2", "--json")
    (page,) = done.json
    assert [release["release_id"] for release in page["releases"]] == ["rrr", "xyz"]
    assert page["releases"][0]["state"] == "RELEASE_STATE_REFUSED"


async def test_a_release_is_shown_with_what_its_gates_measured(server: ReleaseServer) -> None:
    done = await run_keek(server.target, "releases", "get", "rrr")
    assert ["release", "rrr"] in done.lines
    assert ["towers", "user", "10,", "video", "11"] in done.lines
    assert ["recall", "no", "0.5", ">=", "0.95", "0.5", "is", "under", "0.95"] in done.lines
    as_json = (await run_keek(server.target, "--json", "releases", "get", "rrr")).json[0]
    assert json.loads(as_json["manifest_json"])["release_id"] == "rrr"
    missing = await run_keek(server.target, "releases", "get", "none")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.startswith("keek: NOT_FOUND")


async def test_changes_show_the_plan_and_the_servers(server: ReleaseServer, token_file: Path) -> None:
    async def change(*arguments: str) -> Done:
        return await run_keek(server.target, "releases", *arguments, "--admin-token-file", str(token_file))

    done = await change("activate", "abc", "--reason", "it is good")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0].endswith(": it is good")
    assert done.lines[2:] == [["web-1", "abc", "1", "ok"], ["web-2", "abc", "1", "ok"]]
    assert (await change("activate", "bcd")).code == 0
    assert "xyz is canary 5 %" in (await change("canary", "xyz", "5")).out
    assert "xyz is shadow 2.5 %" in (await change("shadow", "xyz", "2.5%")).out
    assert "xyz" not in (await change("end-trial")).out
    back = await change("rollback", "--json")
    assert (back.code, back.json[0]["plan"]["release_id"]) == (0, "abc")
    refused = await change("activate", "rrr")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "keek: FAILED_PRECONDITION: release rrr was refused: it can never serve\n"


async def test_a_change_that_servers_do_not_follow_ends_with_1_and_their_names(
    server: ReleaseServer, token_file: Path
) -> None:
    late = server.followers["web-2"]
    late.follows.clear()
    late.problem = "Triton does not have it"
    arguments = ("releases", "activate", "abc", "--wait-s", "5", "--admin-token-file", str(token_file))
    done = await run_keek(server.target, *arguments)
    assert done.code == 1
    assert done.err == "keek: plan 1 is made, and not yet carried out by web-2\n"
    assert ["web-2", "abc", "0", "Triton", "does", "not", "have", "it"] in done.lines


async def test_the_token_comes_from_the_environment_as_well(server: ReleaseServer, token_file: Path) -> None:
    wrong, right = {"KEEK_ADMIN_TOKEN": "wrong"}, {"KEEK_ADMIN_TOKEN": TOKEN}
    file = {"KEEK_ADMIN_TOKEN_FILE": str(token_file)}
    option = ("--admin-token-file", str(token_file))
    for variables, options in ((right, ()), (file, ()), (right | {"KEEK_ADMIN_TOKEN_FILE": "none"}, ())):
        done = await run_keek(server.target, "releases", "activate", "abc", *options, variables=variables)
        assert (done.code, done.err) == (0, "")
    assert (await run_keek(server.target, "releases", "rollback", *option, variables=wrong)).code == 1
    for variables in (wrong, wrong | file, {}):
        done = await run_keek(server.target, "releases", "activate", "abc", variables=variables)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("keek: PERMISSION_DENIED: ")
        assert "--admin-token-file, KEEK_ADMIN_TOKEN or KEEK_ADMIN_TOKEN_FILE" in done.err


async def test_a_token_file_that_is_of_no_use_is_explained(server: ReleaseServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    missing = await run_keek(server.target, "releases", "rollback", "--admin-token-file", str(path))
    assert (missing.code, missing.err) == (1, f"keek: {path}: No such file or directory\n")
    path.write_text("\n")
    empty = await run_keek(server.target, "releases", "rollback", "--admin-token-file", str(path))
    assert empty.code == 1
    assert empty.err.startswith(f"keek: {path}: the admin token must be")
    # What needs no token does not look for one.
    reading = await run_keek(server.target, "releases", variables={"KEEK_ADMIN_TOKEN_FILE": str(path)})
    assert reading.code == 0


async def test_feeds_stand_side_by_side_with_a_mark_at_what_both_have(
    server: ReleaseServer, tmp_path: Path, token_file: Path
) -> None:
    variables = {"KEEK_ADMIN_TOKEN_FILE": str(token_file)}
    done = await run_keek(
        server.target, "releases", "diff", "abc", "bcd", "--users", "u1, u2,u1", variables=variables
    )
    assert (done.code, done.err) == (0, "")
    assert done.lines[:5] == [
        ["user", "u1,", "overlap", "0.667"],
        ["#", "abc", "SOURCE", "BOTH", "bcd", "SOURCE", "BOTH"],
        ["1", "u1-a", "personalised", "u1-b", "personalised", "=2"],
        ["2", "u1-b", "personalised", "=1", "u1-c", "personalised", "=3"],
        ["3", "u1-c", "personalised", "=2", "u1-d", "personalised"],
    ]
    assert done.out.endswith("\nmean overlap 0.667 over 2 users\n")
    users = tmp_path / "users"
    users.write_text("".join(f"u{number}\n" for number in range(130)))
    many = await run_keek(
        server.target,
        *("releases", "diff", "abc", "xyz", "--users-file", str(users), "--page-size", "2", "--json"),
        variables=variables,
    )
    assert [diff["user_id"] for diff in many.json[:-1]] == [f"u{number}" for number in range(130)]
    assert many.json[-1] == {"mean_overlap": 0.0, "user_count": 130}
    assert server.answers.calls["DiffReleases"] == 3


@pytest.mark.usefixtures("interruptible")
async def test_watching_shows_each_change_until_ctrl_c(server: ReleaseServer) -> None:
    process = await start(server.target, "releases", "watch")
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"no release is active\n"
        await server.registry.activate("abc", "go")
        while not (line := await process.stdout.readline()).startswith(b"plan 1: abc serves"):
            assert line
        await server.fleet.beat(
            ServerStatus("3", "web-3", 0, now_us(), 1, "abc", figures={"abc": Figures(7, 2, 1)})
        )
        while (await process.stdout.readline()).split() != [b"web-3", b"abc", b"7", b"2", b"1", b"0"]:
            pass
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["activate"],
        ["canary", "abc"],
        ["canary", "abc", "0"],
        ["shadow", "abc", "101"],
        ["canary", "abc", "nan"],
        ["diff", "abc", "bcd"],
        ["diff", "abc", "bcd", "--users", "u1", "--users-file", "f"],
        ["deactivate", "abc"],
    ],
)
async def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = await run_keek("127.0.0.1:1", "releases", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keek releases")
