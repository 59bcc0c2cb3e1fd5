"""Releases of real files, replayed from a log that the server's own mix and exposure log have written: towers
and index are asked by what was known of a user at each page."""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gate_towers
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from manifests import bare_manifest
from projecting import LIKE, SKIP, event

from keek_server.clock import now_us
from keek_server.errors import FailedPreconditionError, NotFoundError, SetupError
from keek_server.experiments.assignment import NO_ARMS
from keek_server.experiments.reading import read_feeds
from keek_server.experiments.totals import slot_rewards
from keek_server.feed.exposures import ExposureLog
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.types import Candidate, FeedPage, FeedSource, Selection
from keek_server.interactions.log import InteractionLog
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import INDEX_FILE
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.ids import hash_id
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.contract import (
    CLIP_DIMENSION,
    DIMENSION,
    RANKING_FEATURES,
    USER_TOWER,
    VIDEO_TOWER,
)
from keek_server.towers.features import Tensors, video_features
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import ClipVector, Video
from keek_training.publishing.catalogue import Catalogue as ReadCatalogue
from keek_training.publishing.catalogue import read_catalogue
from keek_training.publishing.indexes import build_corpus
from keek_training.publishing.source import TowerSource
from keek_training.ranker.pages import read_pages, videos_of
from keek_training.ranker.towers import with_towers
from keek_training.replay_choices import release_choices
from keek_training.replay_command import add_replay_arguments, run_replay
from keek_training.replay_target import OnnxTowers, opened_target

COUNT, USERS, HISTORY = 90, 16, 5
NEW, DELETED = "new", "v007"
TRENDING = [f"v{number:03d}" for number in range(60, 72)]
OTHER = np.random.default_rng(8).normal(size=(DIMENSION, DIMENSION)).astype(np.float32)
SAME = np.eye(DIMENSION, dtype=np.float32)


def video(video_id: str, number: int) -> Video:
    return Video(video_id, f"o{number % 25}", ["cats"], 9.0, "", 1_700_000_000_000_000)


def clip(*numbers: int, scale: float = 1.0) -> ClipVector:
    vectors = [np.random.default_rng(number).normal(size=CLIP_DIMENSION) for number in numbers]
    return ClipVector("", (scale * np.sum(vectors, axis=0)).astype("<f2").tobytes())


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"model_repository": tmp_path / "models"})


def inputs_of(catalogue: ReadCatalogue) -> Tensors:
    """The video tower's, of a whole catalogue."""
    return video_features(
        catalogue.video_ids,
        catalogue.owner_ids,
        catalogue.tags,
        catalogue.durations_s,
        catalogue.clip_vectors,
    )


async def publish(
    release_id: str, number: int, matrix: npt.NDArray[np.float32], database: Database, settings: Settings
) -> None:
    """Both towers, and an index over what the catalogue has."""
    models = {USER_TOWER: gate_towers.user_tower(matrix), VIDEO_TOWER: gate_towers.video_tower()}
    paths = []
    for tower, model in models.items():
        folder = settings.model_repository / tower.model / str(number + 1)
        folder.mkdir(parents=True)
        paths.append(folder / "model.onnx")
        onnx.save(model, str(paths[-1]))
    catalogue = await read_catalogue(database)
    vectors = OnnxTowers(TowerSource.of_files(*paths, HISTORY)).answer(VIDEO_TOWER, inputs_of(catalogue))
    corpus = build_corpus(catalogue, vectors)
    index, report = build_index(corpus.vectors, corpus.vectors, IndexOptions(COUNT + 1, 1.0))
    folder = settings.release_dir / release_id
    folder.mkdir(parents=True)
    corpus.save(folder)
    index.save(folder / INDEX_FILE)
    manifest = bare_manifest(release_id, number).model_copy(
        update={
            "create_time_us": now_us(),
            "history_length": HISTORY,
            "catalogue_seq": catalogue.seq,
            "index": report,
        }
    )
    manifest.save(folder)
    await ReleaseRegistry(database).register(manifest)


@dataclass
class World:
    """What the test knows by itself."""

    vectors: dict[str, npt.NDArray[np.float32]]
    done: dict[str, list[str]] = field(default_factory=dict)
    """Videos by user, oldest first."""
    expected: list[tuple[str, list[str]]] = field(default_factory=list)
    """By page, in the order of time: the user, and what the release of the log would show at best."""
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    """Draws the seeds of pages."""

    def ranked(self, user_id: str, session: Sequence[str]) -> list[str]:
        """Of the release with SAME, by hand."""
        known = np.sum([self.vectors[id_] for id_ in self.done[user_id][-HISTORY:]], axis=0)
        out = {DELETED, *self.done[user_id], *session}
        left = [id_ for id_ in self.vectors if id_ not in out]
        return sorted(left, key=lambda id_: -float(self.vectors[id_] @ known))


def owner_of(video_id: str) -> int:
    return hash_id(f"o{3 if video_id == NEW else int(video_id[1:]) % 25}")


def capped(ranked: Sequence[str], beside: Sequence[str]) -> list[str]:
    """At most two of an owner."""
    counts, kept = Counter(map(owner_of, beside)), []
    for video_id in ranked:
        if counts[owner_of(video_id)] < 2 and video_id not in beside:
            counts[owner_of(video_id)] += 1
            kept.append(video_id)
    return kept


def page(world: World, user_id: str, session: Sequence[str]) -> Selection:
    """As the server's mix makes it of the ranking by hand."""
    ranked = world.ranked(user_id, session)
    given = [
        Candidate(id_, FeedSource.PERSONALISED, -float(place), owner_of(id_))
        for place, id_ in enumerate(ranked[:30])
    ]
    given += [
        Candidate(id_, FeedSource.TRENDING, 1.0, owner_of(id_))
        for id_ in TRENDING
        if id_ not in {*session, *world.done[user_id]}
    ]
    context: Any = SimpleNamespace(
        query=SimpleNamespace(page_size=10, served=tuple(map(hash_id, session)), allowed=None),
        failed=frozenset(),
        seed=world.chance.getrandbits(64),
        parameters=FeedParameters(video_exploration=0.2),
    )
    return QuotaSelector().select(context, given)


def serve(world: World, log: ExposureLog, user_id: str, session: Sequence[str]) -> list[str]:
    made = page(world, user_id, session)
    beside = [item.video_id for item in made.items if item.source is not FeedSource.PERSONALISED]
    world.expected.append((user_id, capped(world.ranked(user_id, session), beside)[: 10 - len(beside)]))
    context = SimpleNamespace(
        query=SimpleNamespace(user_id=user_id, page_size=10, served=tuple(map(hash_id, session))),
        serving=SimpleNamespace(release=SimpleNamespace(id="same")),
        now_us=now_us(),
        assignment=NO_ARMS,
        degradations=[],
    )
    log.apply(cast("FeedPage", SimpleNamespace(context=context, selection=made, elapsed_s=0.001)))
    return [item.video_id for item in made.items]


@pytest.fixture
async def world(database: Database, own: Settings) -> World:
    """Two releases, and two pages of each user, who likes something in between and more afterwards."""
    rng = np.random.default_rng(4)
    store, interactions, log = Catalogue(database), InteractionLog(database), ExposureLog(database)
    ids = [f"v{number:03d}" for number in range(COUNT)]
    await store.put([video(id_, n) for n, id_ in enumerate(ids)], {id_: clip(n) for n, id_ in enumerate(ids)})
    await publish("same", 1, SAME, database, own)
    # Newer than the release, and near to everyone.
    await store.put([video(NEW, 3)], {NEW: clip(*range(60), scale=0.4)})
    catalogue = await read_catalogue(database)
    tower = own.model_repository / VIDEO_TOWER.model / "2" / "model.onnx"
    vectors = OnnxTowers(TowerSource.of_files(tower, tower, HISTORY)).answer(
        VIDEO_TOWER, inputs_of(catalogue)
    )
    world = World(dict(zip(catalogue.video_ids, vectors, strict=True)))
    await store.delete(DELETED, "")
    for number in range(USERS):
        user_id = f"u{number}"
        world.done[user_id] = [ids[n] for n in rng.permutation(60)[:7]]
        await interactions.append([event(user_id, id_) for id_ in world.done[user_id]])
    sessions = {}
    for user_id in world.done:
        sessions[user_id] = serve(world, log, user_id, ())
        liked = sessions[user_id][number % 10]
        await interactions.append([event(user_id, liked, SKIP)])
        world.done[user_id].append(liked)
    later = []
    for user_id, session in sessions.items():
        second = serve(world, log, user_id, session)
        # What follows from both pages must not be known when they are made again.
        later += [event(user_id, id_, LIKE) for id_ in (*session, *second) if rng.random() < 0.3]
    await interactions.append(later)
    await log.flush()
    await interactions.aclose()
    await publish("other", 2, OTHER, database, own)
    return world


async def test_the_release_is_asked_what_it_would_have_been_then(
    world: World, database: Database, own: Settings
) -> None:
    logged = await read_feeds(database, 0, now_us(), window_us=10**9)
    async with opened_target("same", database, own) as target:
        choices = await release_choices(target, logged, database, own, per_owner_cap=2)
    assert len(choices) == 2 * USERS == len(world.expected)
    news = 0
    for feed, (user_id, expected) in enumerate(world.expected):
        chosen = choices[feed]
        assert logged.user_ids[logged.exposures.users[feed]] == user_id
        assert chosen is not None
        assert len(expected) == 7
        known = {id_: code for code, id_ in enumerate(logged.video_ids)}
        assert list(chosen[:7]) == [known[id_] for id_ in expected]
        news += NEW in expected
    assert news > 0


async def test_pages_are_read_as_the_server_would_have_ranked_them(
    world: World, database: Database, own: Settings
) -> None:
    logged = await read_feeds(database, 0, now_us(), window_us=10**9)
    rewards = slot_rewards(logged.exposures, logged.interactions, 10**9)
    async with opened_target("same", database, own) as target:
        shown = await read_pages(target, logged, rewards, database, own)
    exposures, found = logged.exposures, {page.time_us: page for page in shown}
    personalised, earning = exposures.sources == FeedSource.PERSONALISED, 0
    for feed in range(len(exposures)):
        slots = np.arange(exposures.offsets[feed], exposures.offsets[feed + 1])[
            personalised[exposures.offsets[feed] : exposures.offsets[feed + 1]]
        ]
        if not rewards[slots].any():
            assert int(exposures.times_us[feed]) not in found
            continue
        earning += 1
        read = found[int(exposures.times_us[feed])]
        ids = [logged.video_ids[code] for code in exposures.videos[slots]]
        assert read.rewards.tolist() == rewards[slots].tolist()
        assert read.positions.tolist() == (slots - exposures.offsets[feed]).tolist()
        vectors = np.array([world.vectors[id_] for id_ in ids])
        np.testing.assert_allclose(read.page.vectors, vectors, rtol=1e-6)
        # Seven were done before the first page and eight before the second; all that came later is not known.
        user_id = logged.user_ids[exposures.users[feed]]
        done = world.done[user_id][: 7 if exposures.firsts[feed] == 0 else 8][-HISTORY:]
        user_vector = np.sum([world.vectors[id_] for id_ in done], axis=0)
        np.testing.assert_allclose(read.page.user_vector, user_vector, rtol=1e-4, atol=1e-4)
        features = dict(zip(RANKING_FEATURES, read.page.features.T, strict=True))
        np.testing.assert_allclose(features["affinity"], vectors @ user_vector, rtol=1e-3, atol=1e-3)
        known = [owner_of(id_) for id_ in done if id_ != DELETED]
        shares = [known.count(owner_of(id_)) / len(known) for id_ in ids]
        np.testing.assert_allclose(features["owner_share"], shares, rtol=1e-5)
        np.testing.assert_allclose(features["duration"], np.log(10.0), rtol=1e-5)
        hours = (exposures.times_us[feed] - 1_700_000_000_000_000) / 3.6e9
        np.testing.assert_allclose(features["age"], np.log(1 + hours), rtol=1e-5)
    assert earning == len(shown) > USERS / 2


async def test_other_towers_may_take_the_place_of_a_release_s(
    world: World, database: Database, own: Settings, tmp_path: Path
) -> None:
    user_tower, video_tower = tmp_path / "user.onnx", tmp_path / "video.onnx"
    onnx.save(gate_towers.user_tower(OTHER), str(user_tower))
    onnx.save(gate_towers.video_tower(clip=gate_towers.CLIP_WEIGHTS[::-1].copy()), str(video_tower))
    source = TowerSource.of_files(user_tower, video_tower, HISTORY)
    logged = await read_feeds(database, 0, now_us(), window_us=10**9)
    rewards = slot_rewards(logged.exposures, logged.interactions, 10**9)
    videos = await videos_of(logged, rewards, database)
    async with opened_target("same", database, own) as target:
        changed = await with_towers(target, source, videos, database)
        read = await read_pages(changed, logged, rewards, database, own)
        same = await read_pages(target, logged, rewards, database, own)
    catalogue = await read_catalogue(database)
    vectors = OnnxTowers(source).answer(VIDEO_TOWER, inputs_of(catalogue))
    # Of what is removed, the vector is as it was.
    new = world.vectors | dict(zip(catalogue.video_ids, vectors, strict=True))
    feeds = {int(time_us): feed for feed, time_us in enumerate(logged.exposures.times_us)}
    assert len(read) == len(same) > USERS / 2
    for page, before in zip(read, same, strict=True):
        feed = feeds[page.time_us]
        slots = logged.exposures.offsets[feed] + page.positions
        ids = [logged.video_ids[code] for code in logged.exposures.videos[slots]]
        np.testing.assert_allclose(page.page.vectors, [new[id_] for id_ in ids], rtol=1e-5)
        user_id = logged.user_ids[logged.exposures.users[feed]]
        done = world.done[user_id][: 7 if logged.exposures.firsts[feed] == 0 else 8][-HISTORY:]
        user_vector = np.sum([new[id_] for id_ in done], axis=0) @ OTHER
        np.testing.assert_allclose(page.page.user_vector, user_vector, rtol=1e-3, atol=1e-2)
        assert not np.allclose(page.page.vectors, before.page.vectors, rtol=0.01)
        # What is popular is still the release's matter.
        np.testing.assert_allclose(page.page.features[:, 1], before.page.features[:, 1])


async def test_the_command_replays_releases(
    world: World, own: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_replay_arguments(parser.add_subparsers())

    async def run(*words: str) -> str:
        arguments = parser.parse_args(["replay", *words])
        await asyncio.to_thread(run_replay, arguments, own)
        return capsys.readouterr().out

    found = json.loads(await run("--release", "same", "--release", "other", "--json"))
    assert found["feeds"] == 2 * USERS
    same, other = found["replays"]
    assert (same["release"], other["release"]) == ("same", "other")
    assert same["served_before_release_share"] == 0.0
    assert other["served_before_release_share"] == 1.0
    # Owners' caps may put another than its best seven first, after a draw.
    assert same["differing_share"] < 0.05
    assert same["support"] > 0.95
    assert same["slot_count"] > 0.9 * 7 * 2 * USERS
    assert other["differing_share"] > 0.3
    assert [own["name"] for own in same["estimators"]] == ["ips", "snips", "dr"]
    text = await run("--release", "other")
    assert text.startswith("release other, replayed from ")
    assert "WARNING: 100.0% of these feeds are older than the release" in text

    with pytest.raises(SetupError, match="say what is to be replayed"):
        await run()
    with pytest.raises(NotFoundError):
        await run("--release", "none")
    await ReleaseRegistry(database).register(bare_manifest("refused", 8), ReleaseState.REFUSED)
    with pytest.raises(FailedPreconditionError, match="release refused has no files"):
        await run("--release", "refused")
