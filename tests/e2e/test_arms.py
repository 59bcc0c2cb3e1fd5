"""Arms on a real server: feeds differ as they say, what is shown is logged whole, and the report finds it.

Users watch and do not like: other tests on this stack look at what trends.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from patience import DEADLINES, TIMEOUTS, eventually
from pydantic import SecretStr
from serving import Served, command

import keek
import keek.aio
from keek_server.app import open_app
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import exposures

TOKEN = "a-token_of~the-tests"
TRENDING = keek.FeedSource.FEED_SOURCE_TRENDING
USERS = [f"u{number}" for number in range(1, 121)]


def definition(experiment_id: str, *arms: keek.Arm, **rest: Any) -> keek.ExperimentDefinition:
    return keek.ExperimentDefinition(experiment_id=experiment_id, traffic_percent=100.0, arms=arms, **rest)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[keek.aio.Client]:
    """Of a further server on the same stack, with a token and some exploration."""
    settings = served.stack.settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            "admin_token": SecretStr(TOKEN),
            **DEADLINES,
        }
    )
    async with (
        open_app(settings) as app,
        keek.aio.Client(f"127.0.0.1:{app.port}", admin_token=TOKEN, timeouts=TIMEOUTS) as own,
    ):
        await asyncio.wait_for(app.live.wait(), 60)
        yield own
        # A layer's users are free for the next test, whatever this one did.
        async for experiment in own.iter_experiments():
            await own.stop_experiment(experiment.definition.experiment_id)


async def arm_of(client: keek.aio.Client, user_id: str) -> str:
    return {item.arm for item in (await client.list_feed(user_id)).items}.pop()


async def in_effect(client: keek.aio.Client, experiment_id: str, *, running: bool) -> str:
    """The arm of the first feed that an experiment shapes, or does not any more."""
    arm = ""

    async def tells() -> bool:
        nonlocal arm
        arm = await arm_of(client, "u1")
        return (experiment_id in arm) == running

    await eventually(tells)
    return arm


async def logged_feeds(database: Database, experiment_id: str) -> Counter[str]:
    """Feeds in the log, by arm."""
    rows = await database.rows(sa.select(exposures.c.arms).where(exposures.c.arms.is_not(None)))
    return Counter(arm for row in rows for id_, arm in row.arms if id_ == experiment_id)


async def all_are_logged(database: Database, experiment_id: str, count: int) -> bool:
    """The log is written twice a second, or later."""
    return (await logged_feeds(database, experiment_id)).total() >= count


async def test_two_arms_differ_as_they_say_all_is_logged_and_the_report_finds_it(
    served: Served, client: keek.aio.Client
) -> None:
    arms = [
        keek.Arm(name="control"),
        keek.Arm(name="half", parameters=keek.FeedParameters(personalised_share=0.5)),
    ]
    await client.create_experiment(definition("e2e-mix", *arms))
    await client.start_experiment("e2e-mix")
    first = await in_effect(client, "e2e-mix", running=True)
    async with open_database(served.stack.settings) as database:
        rng = random.Random(2)
        durations_s = {video.video_id: video.duration_s async for video in client.iter_videos()}
        shown = Counter([first.partition("/")[2]])
        views: Counter[str] = Counter()
        for user_id in USERS:
            page = await client.list_feed(user_id)
            arm = page.items[0].arm
            assert {item.arm for item in page.items} == {arm}
            quota = {share.source: share.quota_count for share in page.slot_shares}
            assert quota[TRENDING] == {"e2e-mix/control": 3, "e2e-mix/half": 5}[arm]
            shown[arm.partition("/")[2]] += 1
            for item in page.items:
                is_half = arm.endswith("half")
                if rng.random() < (0.4 if is_half else 0.1):
                    watched_s = durations_s[item.video_id] * rng.uniform(0.3, 0.9 if is_half else 0.5)
                    await client.view(user_id, item.video_id, watched_s=watched_s)
                    views[arm.partition("/")[2]] += 1
        assert min(shown.values()) > 35
        await eventually(lambda: all_are_logged(database, "e2e-mix", shown.total()))
        assert await logged_feeds(database, "e2e-mix") == shown

    answer = await client.get_experiment_report("e2e-mix", html=True)
    figures = json.loads(answer.report_json)
    assert {arm["name"]: arm["feed_count"] for arm in figures["arms"]} == shown
    assert not figures["sample_ratio"]["is_broken"]
    rows = {measure["name"]: measure["arms"] for measure in figures["measures"]}
    for row in rows["views"]:
        # What the time before predicts is taken out: it is next to nothing.
        assert row["value"] * row["user_count"] == pytest.approx(views[row["arm"]], rel=0.05)
    shares = [row["value"] for row in rows["watch_share"]]
    assert shares == pytest.approx([0.4, 0.6], abs=0.05)
    assert rows["watch_share"][1]["difference"]["p_value"] < 0.001
    difference = rows["views"][1]["difference"]
    assert difference["relative_low"] > 0.5
    assert difference["p_value"] < 0.001
    assert "e2e-mix" in answer.report_text
    assert answer.report_html.startswith("<!")
    assert "<svg" in answer.report_html

    await client.stop_experiment("e2e-mix")
    await in_effect(client, "e2e-mix", running=False)
    done = await client.conclude_experiment("e2e-mix", winner="half", conclusion="more is watched")
    assert done.winner == "half"


async def test_exploration_is_logged_with_its_odds_and_can_be_replayed(
    served: Served, client: keek.aio.Client
) -> None:
    explored = keek.FeedParameters(exploration=0.5, video_exploration=0.2)
    arms = [keek.Arm(name="a", parameters=explored), keek.Arm(name="b", parameters=explored)]
    await client.create_experiment(definition("e2e-odds", *arms))
    await client.start_experiment("e2e-odds")
    await in_effect(client, "e2e-odds", running=True)
    for number in range(1, 301):  # beside the one that told
        for item in (await client.list_feed(f"u{number}")).items:
            if item.source == TRENDING:
                await client.view(f"u{number}", item.video_id)
    async with open_database(served.stack.settings) as database:
        await eventually(lambda: all_are_logged(database, "e2e-odds", 301))
        rows = await database.rows(sa.select(exposures).where(exposures.c.arms.is_not(None)))
        odds = [each[3] for row in rows for each in row.slate if row.arms[0][0] == "e2e-odds"]
        known = Counter(round(each, 6) for each in odds if each is not None)
        assert set(known) == {0.25, 0.75}
        assert 0.15 < known[0.25] / known.total() < 0.35
    await client.stop_experiment("e2e-odds")
    done = await asyncio.to_thread(
        command,
        served.stack,
        "keek-train",
        "replay",
        "--mix",
        "50/50",
        "--mix",
        "70/30",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    more, same = json.loads(done.stdout)["replays"]
    # Trending videos alone are watched. Of a mix that is farther from what was served, few pages would tell.
    # Of this one, those of one arm alone tell the wrong thing in one of a hundred logs.
    for of_more, of_same in zip(more["estimators"], same["estimators"], strict=True):
        assert of_more["value"] > of_same["value"]
    release_id = (await client.list_feed("u1")).release_id
    done = await asyncio.to_thread(
        command,
        served.stack,
        "keek-train",
        "replay",
        "--release",
        release_id,
        "--arm",
        "e2e-odds/a",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["replays"]
    # Its towers and its index, asked again, say what the server has shown.
    assert found["feed_count"] > 35
    assert found["differing_share"] < 0.1
    assert found["support"] > 0.95


async def test_an_arm_may_pin_a_release_and_testers_have_theirs(
    served: Served, client: keek.aio.Client
) -> None:
    release_id = (await client.list_feed("u1")).release_id
    arms = [
        keek.Arm(name="control"),
        keek.Arm(name="pinned", parameters=keek.FeedParameters(release_id=release_id)),
    ]
    overrides = [keek.ArmOverride(user_id="tester", arm="pinned")]
    audience = keek.Audience(user_id_prefixes=["nobody"])
    given = definition("e2e-pin", *arms, overrides=overrides, audience=audience)
    await client.create_experiment(given)
    await client.start_experiment("e2e-pin")
    async with asyncio.timeout(30):
        while await arm_of(client, "tester") != "e2e-pin/pinned":
            await asyncio.sleep(0.05)
    assert (await client.list_feed("tester")).release_id == release_id
    assert await arm_of(client, "u1") == ""
    await client.stop_experiment("e2e-pin")
    broken = [arms[0], keek.Arm(name="gone", parameters=keek.FeedParameters(release_id="gone"))]
    await client.create_experiment(definition("e2e-gone", *broken))
    with pytest.raises(keek.FailedPreconditionError, match="release gone cannot serve"):
        await client.start_experiment("e2e-gone")
