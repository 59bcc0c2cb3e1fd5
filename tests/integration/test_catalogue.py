"""The catalogue and its clock, on SQLite and on PostgreSQL."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from schema_steps import to_step
from sqlalchemy.ext.asyncio import create_async_engine

from keek_server.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from keek_server.settings import Settings
from keek_server.storage import tables
from keek_server.storage.database import Database, open_database
from keek_server.storage.hurried import Parameters
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import ChangeFeed
from keek_server.videos.video import ClipVector, Video, VideoState


def video(video_id: str, **changes: object) -> Video:
    plain = Video(video_id, "ann", ["cats"], 5.0, "A cat", 1_700_000_000_000_000)
    plain = replace(plain, language="pt-BR", region="BR")
    return replace(plain, **changes)  # type: ignore[arg-type]


def clip(seed: int) -> ClipVector:
    vector = np.random.default_rng(seed).normal(size=512)
    return ClipVector("small@1", (vector / np.linalg.norm(vector)).astype("<f2").tobytes())


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


@pytest.fixture
def feed(database: Database) -> ChangeFeed:
    return ChangeFeed(database)


async def has_file(database: Database, video_id: str) -> None:
    """As an upload leaves it."""
    async with database.write() as connection:
        change = tables.videos.update().where(tables.videos.c.video_id == video_id)
        await connection.execute(
            change.values(original_url="file:///o.mp4", poster_url="file:///p.jpg", width=9)
        )


async def test_videos_from_before_there_were_uploads_are_ready_and_no_change(settings: Settings) -> None:
    engine = create_async_engine(settings.database_url)
    async with engine.begin() as connection:
        await connection.run_sync(to_step, "0001")
        await connection.execute(
            sa.text(
                "INSERT INTO videos (video_id, owner_id, tags, duration_s, title, create_time_us)"
                " VALUES ('old', 'ann', '[\"cats\"]', 5, 'A cat', 1700000000000000)"
            )
        )
    await engine.dispose()
    async with open_database(settings) as database:
        assert await Catalogue(database).get("old") == video("old", language="", region="")
        assert await ChangeFeed(database).read(0, 10) == []
        await Catalogue(database).put([video("new")])
        assert [change.video_id for change in await ChangeFeed(database).read(0, 10)] == ["new"]


async def test_videos_from_before_there_were_languages_stay_as_they_are(settings: Settings) -> None:
    engine = create_async_engine(settings.database_url)
    async with engine.begin() as connection:
        await connection.run_sync(to_step, "0003")
        await connection.execute(
            sa.text(
                "INSERT INTO videos (video_id, owner_id, tags, duration_s, title, create_time_us, state,"
                " change_seq, width, height, original_url, poster_url) VALUES ('old', 'ann', '[\"cats\"]', 5,"
                " 'A cat', 1700000000000000, 4, 7, 9, 16, 'file:///o.mp4', 'file:///p.jpg')"
            )
        )
    await engine.dispose()
    kept = video(
        "old",
        width=9,
        height=16,
        original_url="file:///o.mp4",
        poster_url="file:///p.jpg",
        language="",
        region="",
    )
    async with open_database(settings) as database:
        catalogue = Catalogue(database)
        assert await catalogue.get("old") == kept
        (change,) = await ChangeFeed(database).read(0, 10)
        assert (change.seq, change.language, change.region) == (7, "", "")
        told = {"language": "de", "region": "AT"}
        assert await catalogue.update("old", told, "") == replace(kept, **told)


async def test_what_was_put_is_read_and_put_again_replaces_it(catalogue: Catalogue) -> None:
    assert await catalogue.put([video("a"), video("b")]) == 2
    assert await catalogue.put([video("b", title="Other"), video("c")]) == 1
    assert await catalogue.get("a") == video("a")
    assert await catalogue.get("b") == video("b", title="Other")
    assert [v.video_id for v in await catalogue.page(after="a", owner_id="ann", limit=9)] == ["b", "c"]
    assert await catalogue.page(after="", owner_id="nobody", limit=9) == []


async def test_putting_metadata_again_keeps_the_file_and_the_clip_vector(
    catalogue: Catalogue, database: Database
) -> None:
    await catalogue.put([video("a")], {"a": clip(1)})
    await has_file(database, "a")
    await catalogue.put([video("a", title="New")])
    stored = await catalogue.get("a")
    assert (stored.title, stored.original_url, stored.width) == ("New", "file:///o.mp4", 9)
    assert await catalogue.clip_vector("a") == clip(1)
    await catalogue.put([video("a")], {"a": clip(2)})
    assert await catalogue.clip_vector("a") == clip(2)
    with pytest.raises(AlreadyExistsError):
        await catalogue.check_free("a")
    await catalogue.check_free("b")


async def test_a_video_that_clip_still_looks_at_stays_so_when_its_metadata_is_put(
    catalogue: Catalogue,
) -> None:
    await catalogue.put([video("a", state=VideoState.EMBEDDING)])
    await catalogue.put([video("a", title="New")])
    assert (await catalogue.get("a")).state is VideoState.EMBEDDING


async def test_a_deleted_video_is_gone_for_callers_and_told_to_followers(
    catalogue: Catalogue, database: Database, feed: ChangeFeed
) -> None:
    await catalogue.put([video("a"), video("b")], {"a": clip(1)})
    await has_file(database, "a")
    assert await catalogue.briefs(["a"]) != {}
    before = await feed.last()
    await catalogue.delete("a", "")
    with pytest.raises(NotFoundError):
        await catalogue.get("a")
    with pytest.raises(NotFoundError):
        await catalogue.delete("a", "")
    with pytest.raises(NotFoundError):
        await catalogue.update("a", {"title": "x"}, "")
    assert await catalogue.briefs(["a", "b"]) == {"b": ("ann", ("cats",))}
    assert await catalogue.clip_vector("a") is None
    assert [v.video_id for v in await catalogue.page(after="", owner_id="", limit=9)] == ["b"]
    (change,) = await feed.read(before, 10)
    assert (change.video_id, change.state, change.clip) == ("a", VideoState.DELETED, None)
    assert await catalogue.put([video("a")]) == 1
    assert await catalogue.get("a") == video("a")


async def test_of_a_deleted_video_nothing_is_kept_but_that_its_files_must_go(
    catalogue: Catalogue, database: Database
) -> None:
    await catalogue.put([video("a")])
    await has_file(database, "a")
    await catalogue.delete("a", "")
    async with database.read() as connection:
        row = (await connection.execute(sa.select(tables.videos))).one()
        files = (await connection.execute(sa.select(tables.files_to_remove.c.url))).scalars().all()
    assert (row.owner_id, row.tags, row.title, row.original_url) == ("", [], "", "")
    assert (row.language, row.region) == ("", "")
    assert files == ["file:///o.mp4", "file:///p.jpg"]


@pytest.mark.parametrize("everything", [False, True])
async def test_a_read_begun_before_a_change_is_not_remembered_after_it(
    catalogue: Catalogue, database: Database, monkeypatch: pytest.MonkeyPatch, everything: bool
) -> None:
    await catalogue.put([video("a"), video("b")])
    catalogue.forget_all()
    rows, was_read, go_on, reads = database.rows, asyncio.Event(), asyncio.Event(), 0

    async def slow(query: sa.Select[Any], parameters: Parameters) -> Sequence[Any]:
        nonlocal reads
        reads += 1
        found = await rows(query, parameters)
        was_read.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(database, "rows", slow)
    reading = asyncio.create_task(catalogue.briefs(["a", "b"]))
    await was_read.wait()
    await catalogue.delete("a", "")
    if everything:
        catalogue.forget_all()
    go_on.set()
    await reading
    assert await catalogue.briefs(["b"]) == {"b": ("ann", ("cats",))}
    assert reads == (2 if everything else 1)
    assert await catalogue.briefs(["a", "b"]) == {"b": ("ann", ("cats",))}


async def test_an_update_changes_what_it_names(catalogue: Catalogue) -> None:
    await catalogue.put([video("a")])
    await catalogue.briefs(["a"])
    updated = await catalogue.update("a", {"tags": ["dogs"], "owner_id": ""}, "")
    assert updated == video("a", tags=["dogs"], owner_id="")
    assert await catalogue.briefs(["a"]) == {"a": ("", ("dogs",))}


async def test_a_repeated_request_does_nothing_more(catalogue: Catalogue) -> None:
    await catalogue.put([video("a"), video("b")])
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    await catalogue.update("a", {"title": "One"}, first)
    await catalogue.update("a", {"title": "Two"}, "")
    assert (await catalogue.update("a", {"title": "One"}, first)).title == "Two"
    await catalogue.delete("a", second)
    await catalogue.delete("a", second)
    assert await catalogue.was_done(second, "DeleteVideo", "a")
    assert not await catalogue.was_done(str(uuid.uuid4()), "DeleteVideo", "a")
    with pytest.raises(InvalidArgumentError, match="another request"):
        await catalogue.delete("b", second)
    with pytest.raises(InvalidArgumentError, match="another request"):
        await catalogue.update("b", {"title": "One"}, first)
    assert (await catalogue.get("b")).title == "A cat"


async def test_a_request_that_failed_is_not_taken_for_done(catalogue: Catalogue) -> None:
    request_id = str(uuid.uuid4())
    with pytest.raises(NotFoundError):
        await catalogue.update("a", {"title": "x"}, request_id)
    await catalogue.put([video("a")])
    assert (await catalogue.update("a", {"title": "x"}, request_id)).title == "x"


async def test_a_follower_sees_every_video_as_it_is_in_the_end(
    catalogue: Catalogue, feed: ChangeFeed
) -> None:
    await catalogue.put([video(f"v{i}") for i in range(25)], {"v3": clip(3)})
    seen, seq = {}, 0
    while changes := await feed.read(seq, 10):
        assert [change.seq for change in changes] == sorted(change.seq for change in changes)
        seen.update({change.video_id: change for change in changes})
        seq = changes[-1].seq
    assert len(seen) == 25
    assert seen["v3"].clip == clip(3)
    assert seen["v4"].clip is None
    assert seen["v4"].tags == ("cats",)
    assert (seen["v4"].language, seen["v4"].region, seen["v4"].state) == ("pt-BR", "BR", VideoState.READY)
    assert seq == await feed.last()


async def test_a_follower_skips_nothing_while_many_write(database: Database) -> None:
    """Reads on from the last number it saw, while transactions commit in whatever order."""
    catalogue, feed = Catalogue(database), ChangeFeed(database)
    seen: set[str] = set()
    done = asyncio.Event()

    async def follow() -> None:
        seq = 0
        while True:
            last_round = done.is_set()
            while changes := await feed.read(seq, 7):
                seen.update(change.video_id for change in changes)
                seq = changes[-1].seq
            if last_round:
                return
            await asyncio.sleep(0)

    async def write(writer: int) -> None:
        for i in range(15):
            await catalogue.put([video(f"w{writer}-{i}-{j}") for j in range(1 + (writer + i) % 4)])

    follower = asyncio.create_task(follow())
    await asyncio.gather(*map(write, range(6)))
    done.set()
    await follower
    async with database.read() as connection:
        stored = set((await connection.execute(sa.select(tables.videos.c.video_id))).scalars())
    assert seen == stored
