"""Changes of the catalogue on their way into live releases, on every database.

The video tower is a stand-in that can be slow or fail; that the real one gives vectors, the tests of
whole servers show.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from background import beside
from patience import eventually

from keek_server.errors import SetupError, UnavailableError
from keek_server.releases.follower import CatalogueFollower
from keek_server.releases.fresh import FreshVideos
from keek_server.releases.manifest import Manifest, TowerVersion
from keek_server.releases.release import INDEX_FILE, VIDEO_COLUMNS, Corpus, Release
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.query import Query
from keek_server.storage.database import Database
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import hash_ids, pad_tags
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import ChangeFeed
from keek_server.videos.filters import VideoFilter
from keek_server.videos.video import ClipVector, Video, VideoState

TOWER = TowerVersion(version=1, sha256="", size_bytes=0)


class Towers:
    """Gives each video a vector that its features decide; waits, or fails, when told to."""

    def __init__(self) -> None:
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def vectors(self, *arguments: Any, **_: Any) -> np.ndarray:
        self.asked += 1
        await self.gate.wait()
        if self.fails:
            raise UnavailableError("Triton is gone")
        features = arguments[2]
        seeds = features["video"][:, 0].astype(np.int64) + features["tags"][:, 0]
        rows = [np.random.default_rng(int(seed) % 2**32).normal(size=DIMENSION) for seed in seeds]
        return np.array(rows, np.float32)


class Live:
    """The releases that are followed."""

    def __init__(self, *followed: FreshVideos) -> None:
        self._followed = list(followed)

    def followed(self) -> list[FreshVideos]:
        return self._followed


def video(video_id: str, tag: str = "cats", state: VideoState = VideoState.READY) -> Video:
    return Video(video_id, "ann", [tag], 5.0, "", 0, state)


def release(count: int = 50, catalogue_seq: int = 0) -> Release:
    """Videos r0, r1, ... without CLIP."""
    rng = np.random.default_rng(1)
    columns = {name: np.zeros((count, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns[VECTORS] = rng.normal(size=(count, DIMENSION)).astype(np.float32)
    index, report = build_index(
        columns[VECTORS], columns[VECTORS], IndexOptions(exact_below=1000, recall_target=1.0)
    )
    manifest = Manifest(
        release_id="r",
        create_time_us=0,
        user_tower=TOWER,
        video_tower=TOWER,
        dimension=DIMENSION,
        history_length=50,
        catalogue_seq=catalogue_seq,
        index=report,
        files_sha256={},
        metrics={},
    )
    corpus = Corpus.build([f"r{i}" for i in range(count)], columns, np.ones(count, np.int64))
    return Release(manifest, corpus, index, None, None)


@pytest.fixture
def towers() -> Towers:
    return Towers()


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


@pytest.fixture
def feed(database: Database) -> ChangeFeed:
    return ChangeFeed(database)


@pytest.fixture
def fresh(feed: ChangeFeed, towers: Towers) -> FreshVideos:
    return FreshVideos(release(), feed, towers, fresh_limit=1000)  # type: ignore[arg-type]


def ids(fresh: FreshVideos, filter_: VideoFilter | None = None) -> set[str]:
    """All that can be found, or all that meet a filter."""
    query = Query(np.ones(DIMENSION, np.float32), 10_000, filter_.mask if filter_ else None)
    (hits,) = fresh.index.search([query])
    return set(hits.found_ids())


RELEASED = {f"r{i}" for i in range(50)}


async def test_what_comes_changes_and_goes_is_found_as_it_is(
    catalogue: Catalogue, fresh: FreshVideos
) -> None:
    await catalogue.put([video("new"), video("r3"), video("later", state=VideoState.EMBEDDING)])
    await fresh.catch_up()
    assert ids(fresh) == RELEASED | {"new"}
    before = fresh.index.value("r3", VECTORS)
    await catalogue.update("r3", {"tags": ["dogs"]}, "")
    await catalogue.delete("new", "")
    await fresh.catch_up()
    assert ids(fresh) == RELEASED
    assert fresh.deleted == {"new"}
    assert not np.array_equal(before, fresh.index.value("r3", VECTORS))
    await catalogue.put([video("new")])
    await fresh.catch_up()
    assert ids(fresh) == RELEASED | {"new"}
    assert fresh.deleted == set()


async def test_what_the_index_holds_already_is_not_read_again(
    catalogue: Catalogue, feed: ChangeFeed, towers: Towers
) -> None:
    await catalogue.put([video("before")])
    later = FreshVideos(
        release(catalogue_seq=await feed.last()),
        feed,
        towers,
        fresh_limit=1000,  # type: ignore[arg-type]
    )
    await catalogue.put([video("after")])
    await later.catch_up()
    assert ids(later) == RELEASED | {"after"}


async def test_a_failing_triton_delays_new_videos_and_no_deletion(
    catalogue: Catalogue, fresh: FreshVideos, towers: Towers, feed: ChangeFeed
) -> None:
    towers.fails = True
    await catalogue.put([video("new"), video("r1")])
    await catalogue.delete("r1", "")
    with pytest.raises(UnavailableError):
        await fresh.catch_up()
    assert ids(fresh) == RELEASED - {"r1"}
    assert fresh.is_behind(await feed.last())
    towers.fails = False
    await fresh.catch_up()
    assert ids(fresh) == RELEASED - {"r1"} | {"new"}
    assert not fresh.is_behind(await feed.last())


async def test_a_deletion_does_not_wait_for_videos_that_are_embedded(
    catalogue: Catalogue, fresh: FreshVideos, towers: Towers
) -> None:
    towers.gate.clear()
    await catalogue.put([video(f"new{i}") for i in range(600)] + [video("r1")])
    catching_up = asyncio.create_task(fresh.catch_up())
    await eventually(lambda: towers.asked > 0)
    await catalogue.delete("r1", "")
    await asyncio.wait_for(fresh.apply(), 60)
    assert "r1" in fresh.deleted
    assert "r1" not in ids(fresh)
    towers.gate.set()
    await catching_up
    assert len(ids(fresh)) == 649


async def test_a_video_that_is_deleted_or_changed_while_it_is_embedded_does_not_come_back(
    catalogue: Catalogue, fresh: FreshVideos, towers: Towers
) -> None:
    towers.gate.clear()
    await catalogue.put([video("gone"), video("changed")])
    catching_up = asyncio.create_task(fresh.catch_up())
    await eventually(lambda: towers.asked > 0)
    await catalogue.delete("gone", "")
    await catalogue.update("changed", {"tags": ["dogs"]}, "")
    await fresh.apply()
    towers.gate.set()
    await catching_up
    assert ids(fresh) == RELEASED | {"changed"}
    expected = await towers.vectors(
        None, None, {"video": hash_ids(["changed"]), "tags": pad_tags([["dogs"]])}
    )
    np.testing.assert_array_equal(fresh.index.value("changed", VECTORS), expected[0])


async def test_vectors_that_are_not_finite_are_left_out(catalogue: Catalogue, feed: ChangeFeed) -> None:
    class Broken(Towers):
        async def vectors(self, *arguments: Any, **_: Any) -> np.ndarray:
            rows = await super().vectors(*arguments)
            rows[0] = np.nan
            return rows

    fresh = FreshVideos(release(), feed, Broken(), fresh_limit=1000)  # type: ignore[arg-type]
    await catalogue.put([video("a"), video("b")])
    await fresh.catch_up()
    assert len(ids(fresh)) == 51


async def test_a_clip_vector_of_no_known_clip_is_read_and_found_by_its_column(
    catalogue: Catalogue, fresh: FreshVideos
) -> None:
    own = np.eye(1, 512, dtype="<f2")
    await catalogue.put([video("a"), video("b")], {"a": ClipVector("", own.tobytes())})
    await fresh.catch_up()
    (hits,) = fresh.index.search([Query(own[0].astype(np.float32), 10, by="clip")])
    assert hits.found_ids() == ["a"]
    assert hits.scores.tolist() == [1.0]


@pytest.fixture
def follower(feed: ChangeFeed, catalogue: Catalogue, fresh: FreshVideos) -> CatalogueFollower:
    return CatalogueFollower(feed, catalogue, Live(fresh), poll_s=0.02)  # type: ignore[arg-type]


async def found(fresh: FreshVideos, expected: set[str]) -> None:
    await eventually(lambda: ids(fresh) == expected)


async def test_the_follower_brings_changes_of_other_servers_and_forgets_their_briefs(
    database: Database, catalogue: Catalogue, fresh: FreshVideos, follower: CatalogueFollower
) -> None:
    other = Catalogue(database)
    async with beside(follower.run()):
        await other.put([video("new")])
        await found(fresh, RELEASED | {"new"})
        assert (await catalogue.briefs(["new"]))["new"].tags == ("cats",)
        await other.update("new", {"tags": ["dogs"]}, "")

        async def is_of_dogs() -> bool:
            return (await catalogue.briefs(["new"]))["new"].tags == ("dogs",)

        await eventually(is_of_dogs)
        await other.delete("new", "")
        await found(fresh, RELEASED)

        async def is_forgotten() -> bool:
            return await catalogue.briefs(["new"]) == {}

        # A release that still reads an earlier change may meet this one before the briefs do.
        await eventually(is_forgotten)


async def test_a_deletion_whose_call_was_cancelled_is_applied_by_the_follower(
    catalogue: Catalogue, fresh: FreshVideos, follower: CatalogueFollower, towers: Towers
) -> None:
    async with beside(follower.run()):
        await catalogue.put([video("r1")])
        await found(fresh, RELEASED)
        await catalogue.delete("r1", "")
        applying = asyncio.create_task(follower.apply())
        await asyncio.sleep(0)
        applying.cancel()
        await found(fresh, RELEASED - {"r1"})


async def test_a_quiet_catalogue_does_not_leave_videos_behind_when_triton_comes_back(
    catalogue: Catalogue, fresh: FreshVideos, follower: CatalogueFollower, towers: Towers
) -> None:
    towers.fails = True
    async with beside(follower.run()):
        await catalogue.put([video("new")])
        await follower.apply()
        await eventually(lambda: towers.asked > 0)
        towers.fails = False
        await found(fresh, RELEASED | {"new"})


async def test_a_release_that_is_made_ready_gets_what_changes_meanwhile(
    feed: ChangeFeed, catalogue: Catalogue, fresh: FreshVideos, towers: Towers
) -> None:
    coming = FreshVideos(release(), feed, towers, fresh_limit=1000)  # type: ignore[arg-type]
    follower = CatalogueFollower(feed, catalogue, Live(fresh, coming), poll_s=0.02)  # type: ignore[arg-type]
    async with beside(follower.run()):
        await catalogue.put([video("new"), video("r1")])
        await catalogue.delete("r1", "")
        await follower.apply()
        assert "r1" not in ids(fresh) | ids(coming)
        await found(coming, RELEASED - {"r1"} | {"new"})


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_release_that_gets_no_vectors_holds_no_other_one_up(
    feed: ChangeFeed, catalogue: Catalogue, fresh: FreshVideos, how: str
) -> None:
    broken = Towers()
    broken.fails = how == "fails"
    if how == "hangs":
        broken.gate.clear()
    tried = FreshVideos(release(), feed, broken, fresh_limit=1000)  # type: ignore[arg-type]
    follower = CatalogueFollower(feed, catalogue, Live(tried, fresh), poll_s=0.02)  # type: ignore[arg-type]
    async with beside(follower.run()):
        for number in range(3):
            await catalogue.put([video(f"new{number}")])
            await found(fresh, RELEASED | {f"new{own}" for own in range(number + 1)})
        # It reads the changes by itself, and may be later than the other one.
        await eventually(lambda: broken.asked > 0)
        assert ids(tried) == RELEASED
        broken.fails = False
        broken.gate.set()
        await found(tried, ids(fresh))


def test_a_release_of_an_earlier_version_says_what_to_do(tmp_path: Path) -> None:
    made = release()
    made.corpus.save(tmp_path)
    made.manifest.save(tmp_path)
    (tmp_path / "durations_s.npy").unlink()
    with pytest.raises(SetupError, match=r"durations_s.npy: publish again"):
        Release.open(tmp_path)


def test_a_release_that_lost_a_file_of_its_manifest_is_refused(tmp_path: Path) -> None:
    made = release()
    made.corpus.save(tmp_path)
    made.manifest.model_copy(update={"files_sha256": {"languages.npy": ""}}).save(tmp_path)
    (tmp_path / "languages.npy").unlink()
    with pytest.raises(SetupError, match=r"languages.npy: publish again"):
        Release.open(tmp_path)


async def test_of_a_release_from_before_there_were_languages_only_new_videos_have_one(
    tmp_path: Path, catalogue: Catalogue, feed: ChangeFeed, towers: Towers
) -> None:
    made = release()
    made.corpus.save(tmp_path)
    made.index.save(tmp_path / INDEX_FILE)
    made.manifest.save(tmp_path)
    for name in ("languages", "regions"):
        (tmp_path / f"{name}.npy").unlink()
    old = await asyncio.to_thread(Release.open, tmp_path)
    for name in ("languages", "regions"):
        column, kind = old.corpus.columns[name], VIDEO_COLUMNS[name]
        assert (column.shape, column.dtype) == ((50, *kind.shape), kind.dtype)
        # All rows are one and the same.
        assert not column.any()
        assert set(column.strides[:1]) == {0}
    fresh = FreshVideos(old, feed, towers, fresh_limit=1000)  # type: ignore[arg-type]
    assert ids(fresh) == RELEASED
    portuguese, brazilian = VideoFilter(languages=["pt"]), VideoFilter(regions=["BR"])
    assert ids(fresh, portuguese) == ids(fresh, brazilian) == set()
    told = (
        replace(video("new"), language="pt-PT", region="PT"),
        replace(video("r3"), language="PT-br", region="br"),
    )
    await catalogue.put(told)
    await fresh.catch_up()
    assert ids(fresh) == RELEASED | {"new"}
    assert ids(fresh, portuguese) == {"new", "r3"}
    assert ids(fresh, VideoFilter(languages=["pt-BR"])) == ids(fresh, brazilian) == {"r3"}
    await catalogue.update("r3", {"language": "de", "region": "AT"}, "")
    await fresh.catch_up()
    assert ids(fresh, portuguese) == {"new"}
    assert ids(fresh, VideoFilter(languages=["de-AT", "de"], regions=["at"])) == {"r3"}
