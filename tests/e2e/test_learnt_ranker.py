"""A ranker from the log to feeds, as an engineer makes it: users are served whose taste the towers do not
know, `keek-train ranker` learns it, and a release takes it along, or says why it does not."""

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from patience import DEADLINES, TIMEOUTS
from pydantic import SecretStr
from serving import command

import keek
import keek.aio
from keek_server.app import open_app
from keek_server.embedded import EmbeddedStack
from keek_server.releases.manifest import Manifest
from keek_server.releases.release import Release
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import exposures

TOKEN = "a-token_of~the-tests"
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
USERS = [f"u{number}" for number in range(1, 251)]
RUN = "e2e"
DATA = "synth:videos=600,users=300,interactions=15000,seed=5"
ENOUGH = {"KEEK_RANKER_MIN_PAGES": "100"}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stack and a server of its own: what is watched here must not trend in other tests."""

    stack: EmbeddedStack
    client: keek.aio.Client


@pytest.fixture
async def stage(published: EmbeddedStack, settings_in: Callable[[Path], Settings]) -> AsyncIterator[Stage]:
    """Serves what the other tests here trained, published once more."""
    async with AsyncExitStack() as resources:
        directory = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="keek-")))
        stack = EmbeddedStack(settings_in(directory))
        await resources.enter_async_context(stack)
        runs = directory / "data" / "runs"
        await asyncio.to_thread(shutil.copytree, published.settings.data_dir / "runs" / RUN, runs / RUN)
        for arguments in (("import", DATA), ("publish", "--run", RUN)):
            await keek_train(stack, *arguments)
        settings = stack.settings.model_copy(
            update={
                "admin_token": SecretStr(TOKEN),
                **DEADLINES,
                # Positions and tastes can be told apart.
                "video_exploration": 0.3,
            }
        )
        app = await resources.enter_async_context(open_app(settings))
        client = keek.aio.Client(f"127.0.0.1:{app.port}", admin_token=TOKEN, timeouts=TIMEOUTS)
        await resources.enter_async_context(client)
        await asyncio.wait_for(app.live.wait(), 60)
        assert await app.projector.wait_for(15_000, 60)
        yield Stage(stack, client)


async def keek_train(stack: EmbeddedStack, *arguments: str, code: int = 0, **variables: str) -> str:
    done = await asyncio.to_thread(command, stack, "keek-train", *arguments, variables=variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def release_of(stack: EmbeddedStack, said: str) -> Manifest:
    return Manifest.load(stack.settings.release_dir / said.split()[1])


async def watch(stage: Stage) -> dict[str, float]:
    """Everybody watches what is long, and hardly anything else; gives the durations of all videos."""
    client, settings = stage.client, stage.stack.settings
    release_id = (await client.list_feed("u1")).release_id
    corpus = Release.open(settings.release_dir / release_id).corpus
    seconds = corpus.columns["durations_s"].tolist()
    durations = {corpus.ids.id_of(row): seconds[row] for row in range(len(corpus.ids))}
    long_s, rng = float(np.quantile(seconds, 0.7)), random.Random(3)
    for user_id in USERS:
        pages = [page async for page in client.stream_feed(user_id, page_count=2)]
        for item in [item for page in pages for item in page.items]:
            if rng.random() < (0.8 if durations[item.video_id] > long_s else 0.02):
                await client.view(user_id, item.video_id)
    async with open_database(settings) as database, asyncio.timeout(30):
        count = sa.select(sa.func.count()).select_from(exposures)
        while next(iter((await database.rows(count))[0])) < 2 * len(USERS):
            await asyncio.sleep(0.2)
    return durations


async def test_what_the_log_teaches_is_published_and_orders_the_feeds_of_an_arm(
    stage: Stage,
) -> None:
    stack, client = stage.stack, stage.client
    before = (await client.list_feed("u1")).release_id
    said = await keek_train(stack, "ranker", code=1)
    assert "pages that something came of" in said
    durations = await watch(stage)

    said = await keek_train(stack, "ranker", code=1, KEEK_GATE_RANKER_NDCG="9", **ENOUGH)
    assert "it is not published: on the latest" in said
    plain = release_of(stack, await keek_train(stack, "publish", "--run", RUN, "--no-activate"))
    assert plain.ranker is None
    assert "its NDCG is" in plain.metrics["ranker"]["refused"]

    report = json.loads(await keek_train(stack, "ranker", "--json", **ENOUGH))
    assert (report["refused"], report["release_id"], report["run"]) == ("", before, RUN)
    assert sum(report["pages"].values()) > 300
    assert report["ndcg"] > report["ndcg_dot_product"] + 0.05
    assert report["max_abs_difference"] < 1e-4
    # For towers that do not serve yet, as the hourly job does it: these are the same ones.
    runs = stack.settings.data_dir / "runs"
    await asyncio.to_thread(shutil.copytree, runs / RUN, runs / "next")
    again = json.loads(await keek_train(stack, "ranker", "--json", "--run", "next", **ENOUGH))
    assert (again["refused"], again["run"], again["pages"]) == ("", "next", report["pages"])
    assert again["ndcg_dot_product"] == pytest.approx(report["ndcg_dot_product"], abs=0.03)
    assert again["ndcg"] > again["ndcg_dot_product"]
    ranked = release_of(stack, await keek_train(stack, "publish", "--run", RUN))
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
