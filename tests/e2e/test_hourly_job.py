"""The hourly job as an engineer runs it: from new interactions to a release, and feeds without Triton."""

import asyncio
import json
import random
from pathlib import Path

import pytest
from serving import Served, command, killed

import keek
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.releases.release import Corpus, Release
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video

CACHED = keek.FeedSource.FEED_SOURCE_CACHED
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
NEW_USERS = [f"hourly{i}" for i in range(20)]


async def interact(settings: Settings, count: int) -> None:
    """New users, each with a history, at the end of the log."""
    rng = random.Random(1)
    async with open_database(settings) as database:
        events = [
            Interaction(
                f"{rng.getrandbits(128):032x}",
                rng.choice(NEW_USERS),
                f"v{rng.randrange(1, 200)}",
                InteractionKind.LIKE,
                1_700_000_000_000_000 + number,
                "",
                (),
            )
            for number in range(count)
        ]
        await InteractionLog(database).commit([events])


async def keek_train(served: Served, *arguments: str) -> str:
    done = await asyncio.to_thread(command, served.stack, "keek-train", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def until_served(served: Served, release_id: str) -> None:
    async with asyncio.timeout(90):
        while (await served.client.list_feed("u21")).release_id != release_id:
            await asyncio.sleep(0.1)


async def test_a_round_brings_what_is_new_into_a_release_and_feeds_for_when_triton_is_gone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = served.stack.settings
    await interact(settings, 1200)
    said = await keek_train(served, "hourly")
    release_id = said.split()[1]
    assert said.startswith(f"release {release_id} is active; ")
    await until_served(served, release_id)

    manifest = json.loads((settings.release_dir / release_id / "manifest.json").read_text())
    assert manifest["source"].startswith("hourly-")
    training = manifest["metrics"]["training"]
    assert training["new_users"] >= len(NEW_USERS) - 1
    assert training["log"]["last_seq"] >= 16_200
    audience = Release.open(settings.release_dir / release_id).audience
    assert audience is not None
    assert (audience.ids.rows_of(NEW_USERS) >= 0).all()
    run = Path(settings.data_dir / "runs" / manifest["source"])
    assert json.loads((run / "config.json").read_text())["base"] == "e2e"

    # Nothing came since: no release, and the feeds are refreshed.
    again = await keek_train(served, "hourly")
    assert again.startswith("nothing published: 0 new interactions since the last run, fewer than 1,000; ")
    assert again.rstrip().endswith(" cached feeds refreshed")
    assert int(again.split()[-4].replace(",", "")) >= 300

    # A video came: the same models, with a new index.
    async with open_database(settings) as database:
        await Catalogue(database).put([Video("came-alone", "o", ["new"], 9.0, "", 0)])
    monkeypatch.setenv("KEEK_HOURLY_MIN_VIDEOS", "1")
    said = await keek_train(served, "hourly")
    before, release_id = release_id, said.split()[1]
    assert release_id != before
    await until_served(served, release_id)
    indexed = json.loads((settings.release_dir / release_id / "manifest.json").read_text())
    assert indexed["source"] == manifest["source"]
    assert indexed["user_tower"]["sha256"] == manifest["user_tower"]["sha256"]
    corpus = Corpus.open(settings.release_dir / release_id)
    assert (corpus.ids.rows_of(["came-alone"]) >= 0).all()
    assert (await keek_train(served, "hourly")).startswith("nothing published: ")

    personal = await served.client.list_feed("hourly1")
    assert PERSONALISED in {item.source for item in personal.items}
    async with killed(served.stack.triton):
        # Of this one no vector is kept.
        feed = await served.client.list_feed("hourly2")
    assert len(feed.items) == 10
    assert sum(item.source == CACHED for item in feed.items) >= 7
    assert feed.release_id == release_id
    assert any(CACHED in degradation.replaced_by for degradation in feed.degradations)
    async with asyncio.timeout(60):
        while (await served.client.list_feed("hourly2")).degradations:
            await asyncio.sleep(0.2)
