"""CreateVideo, UpdateVideo and DeleteVideo on the real parts, on every database and two kinds of storage."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from background import beside, held_up
from patience import eventually
from receiving import CLIP, STORAGES, NoClip, clean_up, kept, stored_bytes, video, with_storage

from keek_server.errors import (
    AlreadyExistsError,
    BadMediaError,
    InvalidArgumentError,
    MediaProblem,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.cleaner import Cleaner
from keek_server.videos.copying import Copy
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.ingest import Ingest
from keek_server.videos.library import Library
from keek_server.videos.media import MediaStore, open_media
from keek_server.videos.receiver import Receiver
from keek_server.videos.slots import Slots
from keek_server.videos.uploads import Uploads
from keek_server.videos.video import VideoState


class Follower:
    """Stands for the catalogue's follower: says when deletions were applied, and may be late or fail."""

    def __init__(self) -> None:
        self.applied = 0
        self.notified = 0
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def notify(self) -> None:
        self.notified += 1

    async def apply(self) -> None:
        self.begun.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        self.applied += 1


@pytest.fixture(params=STORAGES)
def stored(request: pytest.FixtureRequest, settings: Settings, theirs: Path) -> Settings:
    return with_storage(settings, request.param).model_copy(update={"video_sources": (str(theirs),)})


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Somebody else's folder, with a video and something else."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(CLIP)
    (folder / "text.mp4").write_bytes(b"this is not a video " * 100)
    return folder


@pytest.fixture
async def media(stored: Settings) -> AsyncIterator[MediaStore]:
    async with open_media(stored) as opened:
        yield opened


@pytest.fixture(scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    async with open_decoder(Settings()) as opened:
        yield opened


@pytest.fixture
def follower() -> Follower:
    return Follower()


@pytest.fixture
def catalogue(database: Database) -> Catalogue:
    return Catalogue(database)


@pytest.fixture
def ingest(database: Database, catalogue: Catalogue, media: MediaStore, decoder: Decoder) -> Ingest:
    return Ingest(database, catalogue, media, decoder, NoClip(), Settings())  # type: ignore[arg-type]


@pytest.fixture
def slots() -> Slots:
    return Slots(4, "videos coming in")


@pytest.fixture
async def cleaner(database: Database, media: MediaStore, stored: Settings) -> AsyncIterator[Cleaner]:
    """Running, as on a server."""
    one = clean_up(database, media, stored)
    async with beside(one.run()):
        yield one


Make = Callable[..., Library]


@pytest.fixture
def make(
    catalogue: Catalogue,
    media: MediaStore,
    ingest: Ingest,
    follower: Follower,
    cleaner: Cleaner,
    slots: Slots,
    stored: Settings,
) -> Make:
    def library(**changes: object) -> Library:
        settings = stored.model_copy(update=changes)
        return Library(catalogue, media, ingest, follower, cleaner, slots, settings)  # type: ignore[arg-type]

    return library


@pytest.fixture
def library(make: Make) -> Library:
    return make()


def request_id() -> str:
    return str(uuid.uuid4())


# -- CreateVideo ------------------------------------------------------------------------------------
async def test_a_video_is_made_from_where_it_lies_and_only_its_poster_is_stored(
    library: Library, theirs: Path, media: MediaStore, catalogue: Catalogue
) -> None:
    made = await library.create(video("v1"), str(theirs / "clip.mp4"), request_id())
    assert made == await catalogue.get("v1")
    assert (made.state, made.original_url) == (VideoState.READY, f"file://{theirs}/clip.mp4")
    assert (made.title, made.tags, made.owner_id) == ("A cat", ["cats"], "ann")
    assert made.duration_s == pytest.approx(1.5, abs=0.1)
    assert [media.url(path) for path in kept(media)] == [made.poster_url]
    assert (await stored_bytes(media, made.poster_url))[:2] == b"\xff\xd8"
    assert [path.name for path in media.scratch.iterdir()] == ["check"]


async def test_a_repeated_create_gives_the_video_as_it_is_and_leaves_no_second_poster(
    library: Library, theirs: Path, media: MediaStore
) -> None:
    source, again = str(theirs / "clip.mp4"), request_id()
    first, second = await asyncio.gather(*(library.create(video("v1"), source, again) for _ in range(2)))
    (theirs / "clip.mp4").unlink()
    assert first == second == await library.create(video("v1"), source, again)
    library._cleaner.notify()
    await eventually(lambda: len(kept(media)) == 1)
    assert (await stored_bytes(media, first.poster_url))[:2] == b"\xff\xd8"
    with pytest.raises(InvalidArgumentError, match="another request"):
        await library.create(video("v2"), source, again)


async def test_a_create_that_finds_the_video_stored_by_a_call_of_its_own_request_gives_that_video(
    library: Library, theirs: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, again = str(theirs / "clip.mp4"), request_id()
    begun, go_on = held_up(monkeypatch, catalogue, "check_free")
    slower = asyncio.create_task(library.create(video("v1"), source, again))
    await begun.wait()
    made = await library.create(video("v1"), source, again)
    go_on.set()
    assert await slower == made


async def test_of_two_creates_of_one_video_the_loser_leaves_no_poster(
    library: Library, theirs: Path, media: MediaStore, catalogue: Catalogue
) -> None:
    source = str(theirs / "clip.mp4")
    calls = (library.create(video("v1"), source, request_id()) for _ in range(2))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError", "Video"]
    library._cleaner.notify()
    poster = (await catalogue.get("v1")).poster_url
    await eventually(lambda: [media.url(path) for path in kept(media)] == [poster])
    with pytest.raises(AlreadyExistsError):
        await library.create(video("v1"), source, request_id())


async def test_a_create_that_failed_can_be_repeated_with_the_same_request_id(
    library: Library, theirs: Path, media: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, put = request_id(), MediaStore.put
    with pytest.raises(NotFoundError):
        await library.create(video("v1"), str(theirs / "late.mp4"), again)

    async def down(*_: object) -> str:
        raise UnavailableError("the storage is not reachable")

    (theirs / "late.mp4").write_bytes(CLIP)
    monkeypatch.setattr(MediaStore, "put", down)
    with pytest.raises(UnavailableError):
        await library.create(video("v1"), str(theirs / "late.mp4"), again)
    monkeypatch.setattr(MediaStore, "put", put)
    made = await library.create(video("v1"), str(theirs / "late.mp4"), again)
    assert made.state is VideoState.READY
    assert list(media.scratch.iterdir()) == []


async def test_a_file_that_is_no_video_or_too_large_is_refused_and_leaves_nothing(
    library: Library, make: Make, theirs: Path, media: MediaStore, catalogue: Catalogue
) -> None:
    with pytest.raises(BadMediaError) as refused:
        await library.create(video("v1"), str(theirs / "text.mp4"), request_id())
    assert refused.value.reason is MediaProblem.NOT_A_VIDEO
    with pytest.raises(BadMediaError) as refused:
        await make(video_max_bytes=len(CLIP) - 1).create(video("v1"), str(theirs / "clip.mp4"), "")
    assert refused.value.reason is MediaProblem.TOO_LARGE
    assert await catalogue.find("v1") is None
    assert kept(media) == []
    assert list(media.scratch.iterdir()) == []


async def test_a_source_outside_the_prefixes_is_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    for source in (tmp_path / "clip.mp4", tmp_path / "theirs" / ".." / "clip.mp4"):
        with pytest.raises(InvalidArgumentError, match="no prefix"):
            await library.create(video("v1"), str(source), request_id())


async def test_uploads_and_creates_share_one_limit(
    library: Library,
    theirs: Path,
    database: Database,
    catalogue: Catalogue,
    media: MediaStore,
    ingest: Ingest,
    slots: Slots,
    stored: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, copy, source = threading.Event(), Copy.run, str(theirs / "clip.mp4")

    def slow(self: Copy) -> None:
        go_on.wait(20)
        copy(self)

    async def idle() -> AsyncIterator[bytes]:
        await asyncio.sleep(3600)
        yield b""

    receiver = Receiver(Uploads(database), catalogue, media, ingest, slots, stored)
    monkeypatch.setattr(Copy, "run", slow)
    creates = [asyncio.create_task(library.create(video(f"v{i}"), source, "")) for i in range(2)]
    uploads = [
        asyncio.create_task(receiver.receive(uuid.uuid4(), video(f"u{i}"), len(CLIP), 0, idle()))
        for i in range(2)
    ]
    await eventually(lambda: slots._taken == 4)
    with pytest.raises(OverloadedError):
        await library.create(video("v9"), source, "")
    with pytest.raises(OverloadedError):
        await receiver.receive(uuid.uuid4(), video("u9"), len(CLIP), 0, idle())
    for upload in uploads:
        upload.cancel()
    await asyncio.wait(uploads)
    go_on.set()
    assert [made.video_id for made in await asyncio.gather(*creates)] == ["v0", "v1"]
    assert (await library.create(video("v9"), source, "")).video_id == "v9"
    await receiver.aclose()


# -- UpdateVideo ------------------------------------------------------------------------------------
async def test_an_update_changes_what_it_names_and_tells_the_follower(
    library: Library, theirs: Path, follower: Follower
) -> None:
    made = await library.create(video("v1"), str(theirs / "clip.mp4"), request_id())
    updated = await library.update("v1", {"title": "Two cats", "tags": []}, request_id())
    assert (updated.title, updated.tags, updated.owner_id) == ("Two cats", [], "ann")
    assert (updated.original_url, updated.poster_url) == (made.original_url, made.poster_url)
    assert follower.notified == 1
    with pytest.raises(NotFoundError):
        await library.update("v2", {"title": "x"}, request_id())


# -- DeleteVideo ------------------------------------------------------------------------------------
async def test_a_delete_removes_the_poster_and_leaves_the_file_of_somebody_else(
    library: Library, theirs: Path, media: MediaStore, catalogue: Catalogue, follower: Follower
) -> None:
    await library.create(video("v1"), str(theirs / "clip.mp4"), request_id())
    again = request_id()
    await library.delete("v1", again)
    assert follower.applied == 1
    assert await catalogue.find("v1") is None
    await eventually(lambda: kept(media) == [])
    assert (theirs / "clip.mp4").read_bytes() == CLIP
    await library.delete("v1", again)
    with pytest.raises(NotFoundError):
        await library.delete("v1", request_id())


async def test_a_delete_that_is_cancelled_still_holds_on_this_server_and_removes_the_files(
    library: Library, theirs: Path, media: MediaStore, follower: Follower
) -> None:
    await library.create(video("v1"), str(theirs / "clip.mp4"), request_id())
    follower.go_on.clear()
    call = asyncio.create_task(library.delete("v1", request_id()))
    await follower.begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    follower.go_on.set()
    await library.aclose()
    assert follower.applied == 1
    await eventually(lambda: kept(media) == [])


async def test_a_delete_that_is_committed_succeeds_whatever_fails_behind_it(
    library: Library,
    theirs: Path,
    media: MediaStore,
    follower: Follower,
    database: Database,
    stored: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, remove = asyncio.Event(), MediaStore.remove

    async def down(*_: object) -> None:
        tried.set()
        raise UnavailableError("the storage is not reachable")

    await library.create(video("v1"), str(theirs / "clip.mp4"), request_id())
    monkeypatch.setattr(MediaStore, "remove", down)
    follower.error = UnavailableError("Triton is down")
    await library.delete("v1", request_id())
    assert follower.notified == 1
    async with asyncio.timeout(20):
        await tried.wait()
    assert len(kept(media)) == 1
    monkeypatch.setattr(MediaStore, "remove", remove)
    # Another server, which was not told.
    await clean_up(database, media, stored)._files.go()
    assert kept(media) == []


async def test_files_that_cannot_be_removed_do_not_keep_others_from_going(
    database: Database, media: MediaStore, stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = MediaStore.remove
    urls = [await media.put(f"originals/{i}/{i}.mp4", b"x") for i in range(8)]

    async def stuck(self: MediaStore, url: str) -> None:
        if url in urls[:5]:
            raise UnavailableError("the storage is not reachable")
        await remove(self, url)

    monkeypatch.setattr(MediaStore, "remove", stuck)
    cleaner = clean_up(database, media, stored)
    await cleaner._removals.add(urls)
    for _ in range(2):
        await cleaner._files.go()
    assert kept(media) == [f"originals/{i}/{i}.mp4" for i in range(5)]
    monkeypatch.setattr(MediaStore, "remove", remove)
    await cleaner._files.go()
    assert kept(media) == []
    assert await cleaner._removals.page(0, 10) == []
