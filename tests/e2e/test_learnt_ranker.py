"""A ranker from the log to feeds, as an engineer makes it: users are served whose taste the towers do not
know, `keek-train ranker` learns it, and a release takes it along, or says why it does not."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import numpy as np
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from serving import Served, command

import keek
import keek.aio
from keek_server.app import open_app
from keek_server.releases.manifest import Manifest
from keek_server.releases.release import Release
from keek_server.storage.database import open_database
from keek_server.storage.tables import exposures

TOKEN = "a-token_of~the-tests"
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
USERS = [f"u{number}" for number in range(1, 301)]
ENOUGH = {"KEEK_RANKER_MIN_PAGES": "100"}


@pytest.fixture
async def client(served: Served) -> AsyncIterator[keek.aio.Client]:
    """Of a further server on the same stack, with a token."""
    settings = served.stack.settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            "admin_token": SecretStr(TOKEN),
            "source_deadline_s": 2.0,
            "redis_deadline_s": 1.0,
            "feed_deadline_s": 5.0,
            # Positions and tastes can be told apart.
            "video_exploration": 0.3,
        }
    )
    async with open_app(settings) as app, keek.aio.Client(f"127.0.0.1:{app.port}", admin_token=TOKEN) as own:
        await asyncio.wait_for(app.live.wait(), 60)
        yield own


async def keek_train(served: Served, *arguments: str, code: int = 0, **variables: str) -> str:
    done = await asyncio.to_thread(command, served.stack, "keek-train", *arguments, variables=variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def release_of(served: Served, said: str) -> Manifest:
    return Manifest.load(served.stack.settings.release_dir / said.split()[1])


async def watch(served: Served, client: keek.aio.Client) -> dict[str, float]:
    """Everybody watches what is long; gives the durations of all videos."""
    release_id = (await client.list_feed("u1")).release_id
    corpus = Release.open(served.stack.settings.release_dir / release_id).corpus
    seconds = corpus.columns["durations_s"].tolist()
    durations = {corpus.ids.id_of(row): seconds[row] for row in range(len(corpus.ids))}
    median, rng = float(np.median(seconds)), random.Random(3)
    for user_id in USERS:
        page = await client.list_feed(user_id)
        for item in page.items:
            if rng.random() < (0.8 if durations[item.video_id] > median else 0.05):
                await client.view(user_id, item.video_id)
    async with open_database(served.stack.settings) as database, asyncio.timeout(30):
        count = sa.select(sa.func.count()).where(exposures.c.release_id == release_id)
        while next(iter((await database.rows(count))[0])) < len(USERS):
            await asyncio.sleep(0.2)
    return durations


@pytest.mark.timeout(500)  # trains twice, and publishes twice
async def test_what_the_log_teaches_is_published_and_orders_the_feeds_of_an_arm(
    served: Served, client: keek.aio.Client
) -> None:
    before = (await client.list_feed("u1")).release_id
    # Nothing else is published without being told to.
    said = await keek_train(served, "ranker", code=1)
    assert "pages that something came of" in said
    durations = await watch(served, client)

    said = await keek_train(served, "ranker", code=1, KEEK_GATE_RANKER_NDCG="9", **ENOUGH)
    assert "it is not published: on the latest" in said
    source = Manifest.load(served.stack.settings.release_dir / before).source
    plain = release_of(served, await keek_train(served, "publish", "--run", source, "--no-activate"))
    assert plain.ranker is None
    assert "its NDCG is" in plain.metrics["ranker"]["refused"]

    report = json.loads(await keek_train(served, "ranker", "--json", **ENOUGH))
    assert (report["refused"], report["release_id"], report["run"]) == ("", before, source)
    assert sum(report["pages"].values()) > 150
    assert report["ndcg"] > report["ndcg_dot_product"] + 0.02
    assert report["max_abs_difference"] < 1e-4
    ranked = release_of(served, await keek_train(served, "publish", "--run", source))
    assert ranked.ranker is not None
    assert ranked.ranker.sha256 == report["sha256"]
    assert ranked.metrics["ranker"]["ndcg"] == report["ndcg"]
    async with asyncio.timeout(30):
        while (await client.list_feed("u1")).release_id != ranked.release_id:
            await asyncio.sleep(0.1)

    arms = [
        keek.Arm(name="off", parameters=keek.FeedParameters(ranker=False, video_exploration=0.0)),
        keek.Arm(name="on", parameters=keek.FeedParameters(ranker=True, video_exploration=0.0)),
    ]
    given = keek.ExperimentDefinition(experiment_id="e2e-ranker", traffic_percent=100.0, arms=arms)
    await client.create_experiment(given)
    await client.start_experiment("e2e-ranker")
    try:
        async with asyncio.timeout(20):
            while not (await client.list_feed("u1")).items[0].arm:
                await asyncio.sleep(0.05)
        shown: dict[str, list[float]] = {"e2e-ranker/off": [], "e2e-ranker/on": []}
        for user_id in USERS[:60]:
            page = await client.list_feed(user_id)
            assert not page.degradations
            own = [item for item in page.items if item.source == PERSONALISED]
            shown[page.items[0].arm] += [durations[item.video_id] for item in own]
        off, on = (float(np.mean(shown[arm])) for arm in ("e2e-ranker/off", "e2e-ranker/on"))
        assert on > 1.2 * off
    finally:
        await client.stop_experiment("e2e-ranker")
