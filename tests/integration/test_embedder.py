"""Videos that wait for CLIP, on every database: whatever fails, none waits for ever or is seen by mistake.

CLIP, the decoder and the store are stand-ins that can be slow or fail; the real ones do their part in the
tests of whole servers.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from background import beside
from patience import eventually

from keek_server.errors import (
    BadMediaError,
    MediaProblem,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from keek_server.settings import Settings
from keek_server.storage import tables
from keek_server.storage.database import Database, open_database
from keek_server.videos import embedder as embedder_module
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import advance_clock
from keek_server.videos.decoding.types import FrameShape
from keek_server.videos.embedder import Embedder
from keek_server.videos.embedding_queue import EmbeddingQueue, Queued
from keek_server.videos.video import ClipVector, Video, VideoState

FRAMES = np.zeros((2, 3, 8, 8), np.uint8)
FILE = "file:///original.mp4"


class World:
    """Everything around the embedder, with its faults."""

    def __init__(self, folder: Path) -> None:
        self.scratch = folder
        self.clip_model: str | None = "small@1"
        self.decoding: Exception | None = None
        self.seeing: Exception | None = None
        self.fetching: Exception | None = None
        self.is_own = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.decoded = 0
        self.fetched = 0

    @property
    def current(self) -> Any:
        """As `LiveRelease` has it."""
        if self.clip_model is None:
            return SimpleNamespace(clip=None)
        record = SimpleNamespace(clip_model=self.clip_model, image_size=8, frame_shape=FrameShape(8))
        return SimpleNamespace(clip=SimpleNamespace(record=record, images=self))

    async def vector(self, frames: Any) -> np.ndarray:
        """As `ClipImages` does."""
        await self.gate.wait()
        if self.seeing is not None:
            raise self.seeing
        return np.eye(1, 512, dtype=np.float32)[0]

    async def decode_video(self, *_: object) -> Any:
        """As `Decoder` does."""
        self.decoded += 1
        if self.decoding is not None:
            raise self.decoding
        return SimpleNamespace(frames=FRAMES)

    def owns(self, _url: str) -> bool:
        """As `MediaStore` does."""
        return self.is_own

    async def fetch(self, *_: object, **__: object) -> None:
        """As `MediaStore` does."""
        self.fetched += 1
        if self.fetching is not None:
            raise self.fetching


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(embedder_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(embedder_module, "_PAUSE_S", 0.001)
    return World(tmp_path)


@pytest.fixture
async def embedder(database: Database, world: World) -> AsyncIterator[Embedder]:
    made: Any = world
    embedder = Embedder(database, made, made, made, lambda: None, Settings())
    yield embedder
    await embedder.aclose()


@pytest.fixture
def queue(database: Database) -> EmbeddingQueue:
    return EmbeddingQueue(database)


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


async def store(
    database: Database, video_id: str, *, state: VideoState = VideoState.EMBEDDING, lease: bool = True
) -> Queued:
    """A video with a file, as an upload leaves it."""
    video = Video(video_id, "", [], 1.0, "", 0, state, 8, 8, FILE, "")

    def work(connection: sa.Connection) -> Queued:
        seq = advance_clock(connection, 1)
        for table in (tables.videos, tables.embedding_queue):
            connection.execute(table.delete().where(table.c.video_id == video_id))
        connection.execute(tables.videos.insert().values({**video.as_row(), "change_seq": seq}))
        queued = Queued.new(video_id, seq) if lease else Queued(video_id, seq, 0)
        if state is VideoState.EMBEDDING:
            connection.execute(tables.embedding_queue.insert().values(queued.as_row()))
        return queued

    return await database.transact(work)


async def waiting(database: Database) -> list[str]:
    async with database.read() as connection:
        return list((await connection.execute(sa.select(tables.embedding_queue.c.video_id))).scalars())


async def is_ready(catalogue: Catalogue, video_id: str) -> None:
    async def holds() -> bool:
        return (await catalogue.get(video_id)).state is VideoState.READY

    await eventually(holds)


@pytest.fixture
async def working(embedder: Embedder) -> AsyncIterator[None]:
    """The embedder works off what others left."""
    async with beside(embedder.run()):
        yield


async def test_frames_in_memory_are_seen_without_decoding(
    database: Database, catalogue: Catalogue, embedder: Embedder, world: World
) -> None:
    embedder.submit(await store(database, "a"), FRAMES)
    await is_ready(catalogue, "a")
    vector = await catalogue.clip_vector("a")
    assert vector is not None
    assert vector.clip_model == "small@1"
    assert np.frombuffer(vector.content, "<f2").tolist() == np.eye(1, 512)[0].tolist()
    assert world.decoded == 0
    assert await waiting(database) == []


@pytest.mark.usefixtures("working")
async def test_what_a_dead_server_left_is_decoded_again(
    database: Database, catalogue: Catalogue, world: World
) -> None:
    for i in range(6):
        await store(database, f"v{i}", lease=False)
    for i in range(6):
        await is_ready(catalogue, f"v{i}")
    assert world.decoded == 6


async def test_a_lease_keeps_others_away_until_it_has_run_out(
    database: Database, queue: EmbeddingQueue
) -> None:
    await store(database, "leased")
    await store(database, "left", lease=False)
    assert [one.queued.video_id for one in await queue.take("small@1")] == ["left"]
    assert await queue.take("small@1") == []


@pytest.mark.usefixtures("working")
async def test_a_clip_that_is_down_delays_a_video_and_loses_none(
    database: Database, catalogue: Catalogue, embedder: Embedder, world: World
) -> None:
    world.seeing = UnavailableError("Triton is gone")
    embedder.submit(await store(database, "a"), FRAMES)
    await eventually(lambda: world.decoded > 0)
    assert (await catalogue.get("a")).state is VideoState.EMBEDDING
    world.seeing = None
    await is_ready(catalogue, "a")
    assert await catalogue.clip_vector("a") is not None


@pytest.mark.usefixtures("working")
@pytest.mark.parametrize("fault", [UnavailableError("killed"), OSError("no more processes"), ValueError("?")])
async def test_a_video_that_cannot_be_decoded_is_given_up_in_the_end_and_delays_no_other(
    database: Database, catalogue: Catalogue, world: World, fault: Exception
) -> None:
    world.decoding = fault
    await store(database, "poison", lease=False)
    await is_ready(catalogue, "poison")
    assert world.decoded == 5
    assert await catalogue.clip_vector("poison") is None
    world.decoding = None
    await store(database, "good", lease=False)
    await is_ready(catalogue, "good")


@pytest.mark.parametrize(
    ("what", "fault", "tries"),
    [
        ("fetching", UnavailableError("the storage is not reachable"), "fetched"),
        ("decoding", OverloadedError("64 files wait to be decoded already", retry_after_s=2.0), "decoded"),
        ("seeing", UnavailableError("Triton is gone"), "decoded"),
    ],
)
@pytest.mark.usefixtures("working")
async def test_a_storage_decoder_or_clip_that_is_of_no_use_for_long_costs_no_video_its_vector(
    database: Database, catalogue: Catalogue, world: World, what: str, fault: Exception, tries: str
) -> None:
    setattr(world, what, fault)
    await store(database, "a", lease=False)
    await eventually(lambda: getattr(world, tries) > 6)
    assert (await catalogue.get("a")).state is VideoState.EMBEDDING
    setattr(world, what, None)
    await is_ready(catalogue, "a")
    assert await catalogue.clip_vector("a") is not None


@pytest.mark.usefixtures("working")
async def test_a_source_of_others_that_is_away_for_long_leaves_the_video_to_its_metadata(
    database: Database, catalogue: Catalogue, world: World
) -> None:
    world.fetching, world.is_own = UnavailableError("the storage is not reachable"), False
    await store(database, "a", lease=False)
    await is_ready(catalogue, "a")
    assert await catalogue.clip_vector("a") is None


async def test_a_storage_that_is_away_is_not_asked_for_one_video_after_the_other(
    database: Database, embedder: Embedder, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder_module, "_LOOK_S", 600.0)
    world.fetching = UnavailableError("the storage is not reachable")
    for i in range(12):
        await store(database, f"v{i}", lease=False)
    async with beside(embedder.run()):
        await eventually(lambda: world.fetched == 4)
        await asyncio.sleep(0.5)
    assert world.fetched == 4


@pytest.mark.usefixtures("working")
async def test_a_file_that_went_bad_leaves_the_video_to_its_metadata_at_once(
    database: Database, catalogue: Catalogue, world: World
) -> None:
    world.decoding = BadMediaError(MediaProblem.CORRUPT, "is damaged")
    await store(database, "a", lease=False)
    await is_ready(catalogue, "a")
    assert world.decoded == 1


async def test_what_was_seen_of_an_old_file_is_not_taken_for_the_new_one(
    database: Database, catalogue: Catalogue, embedder: Embedder, world: World
) -> None:
    """The video is deleted and uploaded again while CLIP looks at its first file."""
    world.gate.clear()
    embedder.submit(await store(database, "a"), FRAMES)
    await asyncio.sleep(0.05)
    await catalogue.delete("a", "")
    second = await store(database, "a")
    world.gate.set()
    await asyncio.gather(*embedder._running)
    assert (await catalogue.get("a")).state is VideoState.EMBEDDING
    assert await catalogue.clip_vector("a") is None
    embedder.submit(second, FRAMES)
    await is_ready(catalogue, "a")


async def test_a_video_that_is_deleted_while_clip_looks_at_it_stays_deleted(
    database: Database, catalogue: Catalogue, embedder: Embedder, world: World
) -> None:
    world.gate.clear()
    embedder.submit(await store(database, "a"), FRAMES)
    await asyncio.sleep(0.05)
    await catalogue.delete("a", "")
    world.gate.set()
    await asyncio.gather(*embedder._running)
    assert await catalogue.page(after="", owner_id="", limit=10) == []
    assert await catalogue.clip_vector("a") is None


async def test_a_video_that_is_deleted_while_a_new_clip_queues_it_is_not_queued(
    postgres_url: str, tmp_path: Path
) -> None:
    """The deletion is as good as done, but for its COMMIT. On SQLite no two write at the same time."""
    settings = Settings(data_dir=tmp_path, database_url=postgres_url, sql_deadline_s=60.0)
    async with open_database(settings) as database:
        await store(database, "a", state=VideoState.READY)
        waits = sa.text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        async def wait(count: int) -> bool:
            ((waiting_count,),) = await database.rows(waits)
            return bool(waiting_count == count)

        async with database.write() as connection:
            # Where a deletion writes last.
            await connection.execute(sa.text("LOCK TABLE files_to_remove IN EXCLUSIVE MODE"))
            deleting = asyncio.create_task(Catalogue(database).delete("a", ""))
            await eventually(lambda: wait(1))
            queueing = asyncio.create_task(EmbeddingQueue(database).add_unread("large@2"))

            async def is_past_or_waits() -> bool:
                return queueing.done() or await wait(2)

            await eventually(is_past_or_waits)
        await asyncio.gather(deleting, queueing)
        assert await waiting(database) == []


@pytest.mark.usefixtures("working")
async def test_a_deleted_video_that_is_queued_stays_deleted(
    database: Database, catalogue: Catalogue, queue: EmbeddingQueue, world: World
) -> None:
    left = replace(await store(database, "a"), lease_until_us=0)
    await catalogue.delete("a", "")
    async with database.write() as connection:
        await connection.execute(tables.embedding_queue.insert().values(left.as_row()))
    await store(database, "b", lease=False)
    await is_ready(catalogue, "b")
    assert world.decoded == 1
    assert not await queue.finish(left, ClipVector("small@1", b"\0" * 1024))
    assert await waiting(database) == []
    assert await catalogue.clip_vector("a") is None
    with pytest.raises(NotFoundError):
        await catalogue.get("a")


async def test_a_server_gives_back_only_what_it_still_has(database: Database, queue: EmbeddingQueue) -> None:
    mine = await store(database, "a")
    theirs = replace(mine, lease_until_us=mine.lease_until_us + 1)
    await queue.give_back(theirs)
    assert await queue.take("small@1") == []
    await queue.give_back(mine)
    assert len(await queue.take("small@1")) == 1


@pytest.mark.usefixtures("working")
async def test_a_new_clip_sees_every_video_with_a_file_again(
    database: Database, catalogue: Catalogue, world: World
) -> None:
    for video_id in ("old", "unseen"):
        await store(database, video_id, state=VideoState.READY)
    await catalogue.put(
        [Video("imported", "", [], 0.0, "", 0)], {"imported": ClipVector("small@0", b"\0" * 1024)}
    )

    async def are_seen() -> bool:
        own = [await catalogue.clip_vector(video_id) for video_id in ("old", "unseen")]
        return [vector and vector.clip_model for vector in own] == [world.clip_model] * 2

    for clip_model in ("medium@1", "large@2"):
        world.clip_model = clip_model
        await eventually(are_seen)
    imported = await catalogue.clip_vector("imported")
    assert imported is not None
    assert imported.clip_model == "small@0"


async def test_what_is_queued_for_a_new_clip_is_not_taken_by_a_server_that_has_the_old_one(
    database: Database, queue: EmbeddingQueue
) -> None:
    await store(database, "a", state=VideoState.READY)
    await queue.add_unread("large@2")
    assert await queue.take("small@1") == []
    assert [one.queued.video_id for one in await queue.take("large@2")] == ["a"]


@pytest.mark.usefixtures("working")
async def test_without_clip_videos_are_ready_by_their_metadata(
    database: Database, catalogue: Catalogue, world: World
) -> None:
    world.clip_model = None
    for i in range(12):
        await store(database, f"v{i}", lease=False)
    for i in range(12):
        await is_ready(catalogue, f"v{i}")
    assert world.decoded == 0
    world.clip_model = "small@1"

    async def is_seen() -> bool:
        return await catalogue.clip_vector("v11") is not None

    await eventually(is_seen)
