"""Uploads beside each other, beside their watchers and beside the cleaner."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from background import beside, held_up
from patience import eventually
from receiving import (
    CHUNK,
    CLIP,
    STORAGES,
    clean_up,
    cut_off,
    kept,
    new_receiver,
    send,
    stored_bytes,
    video,
    watching,
    with_storage,
)

from keek_server.errors import (
    AlreadyExistsError,
    BadMediaError,
    MediaProblem,
    NotFoundError,
    OutOfRangeError,
    OverloadedError,
    UnavailableError,
)
from keek_server.settings import Settings
from keek_server.storage import tables
from keek_server.storage.database import Database
from keek_server.videos import receiver as receiver_module
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.ingest import Ingest
from keek_server.videos.media import MediaStore, open_media
from keek_server.videos.receiver import Receiver
from keek_server.videos.uploads import Uploads
from keek_server.videos.video import Video, VideoState
from keek_server.videos.watch import VideoProgress


@pytest.fixture(params=STORAGES)
def stored(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    return with_storage(settings, request.param)


@pytest.fixture
async def media(stored: Settings) -> AsyncIterator[MediaStore]:
    async with open_media(stored) as opened:
        yield opened


@pytest.fixture(scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    async with open_decoder(Settings()) as opened:
        yield opened


@pytest.fixture
async def receiver(
    database: Database, media: MediaStore, decoder: Decoder, stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Receiver]:
    monkeypatch.setattr(receiver_module, "_PART_BYTES", 3 * CHUNK)
    made = new_receiver(database, media, decoder, stored)
    yield made
    await made.aclose()


# -- two at once ------------------------------------------------------------------------------------
async def test_of_two_uploads_of_one_video_the_loser_leaves_no_file(
    receiver: Receiver,
    database: Database,
    media: MediaStore,
    stored: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, decode, waiting = asyncio.Event(), Decoder.decode_video, 0

    async def together(*arguments: Any) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both.set()
        decoded = await decode(*arguments)
        await both.wait()
        return decoded

    monkeypatch.setattr(Decoder, "decode_video", together)
    calls = (send(receiver, uuid.uuid4()), send(receiver, uuid.uuid4()))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError", "Video"]
    await receiver.aclose()
    await clean_up(database, media, stored)._files.go()
    made = await Catalogue(database).get("v1")
    assert sorted(map(media.url, kept(media))) == sorted([made.original_url, made.poster_url])


async def test_of_two_calls_of_one_upload_the_slower_leaves_no_file_and_harms_none(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings
) -> None:
    upload_id = uuid.uuid4()
    first, second = await asyncio.gather(send(receiver, upload_id), send(receiver, upload_id))
    await receiver.aclose()
    await clean_up(database, media, stored)._files.go()
    assert first == second
    assert sorted(map(media.url, kept(media))) == sorted([first.original_url, first.poster_url])


async def test_files_stay_when_nobody_knows_whether_the_video_was_committed(
    receiver: Receiver,
    database: Database,
    media: MediaStore,
    stored: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload_id, commit = uuid.uuid4(), Ingest._commit

    async def unheard(*arguments: Any) -> None:
        await commit(*arguments)
        raise UnavailableError("the database took longer than 5 s")

    monkeypatch.setattr(Ingest, "_commit", unheard)
    with pytest.raises(UnavailableError):
        await send(receiver, upload_id)
    await receiver.aclose()
    await clean_up(database, media, stored)._files.go()
    made = await send(receiver, upload_id, offset=len(CLIP))
    assert await stored_bytes(media, made.original_url) == CLIP


async def test_a_slower_call_that_finds_fault_does_not_reject_what_another_stored(
    receiver: Receiver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, decode, looked, go_on = uuid.uuid4(), Decoder.decode_video, asyncio.Event(), asyncio.Event()

    async def late(*_: object) -> None:
        looked.set()
        await go_on.wait()
        raise BadMediaError(MediaProblem.DECODE_BOMB, "takes too long")

    monkeypatch.setattr(Decoder, "decode_video", late)
    slower = asyncio.create_task(send(receiver, upload_id))
    await looked.wait()
    monkeypatch.setattr(Decoder, "decode_video", decode)
    made = await send(receiver, upload_id)
    go_on.set()
    assert await slower == made
    assert (await Uploads(database).get(upload_id)).state is VideoState.EMBEDDING


async def test_a_call_that_finds_the_video_stored_by_another_call_of_its_upload_gives_that_video(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = uuid.uuid4()
    begun, go_on = held_up(monkeypatch, receiver._catalogue, "check_free")
    slower = asyncio.create_task(send(receiver, upload_id))
    await begun.wait()
    made = await send(receiver, upload_id)
    go_on.set()
    assert await slower == made


# -- watching ---------------------------------------------------------------------------------------
async def test_an_upload_that_is_refused_for_a_video_with_a_file_is_not_what_its_watchers_see(
    receiver: Receiver, database: Database
) -> None:
    cut, refused = uuid.uuid4(), uuid.uuid4()
    await cut_off(receiver, cut, end=CHUNK)
    assert [await anext(watching(database).follow("v1"))] == [
        VideoProgress(VideoState.UPLOADING, CHUNK, len(CLIP))
    ]
    await send(receiver, uuid.uuid4())
    for upload_id in (refused, cut):
        with pytest.raises(AlreadyExistsError):
            await send(receiver, upload_id)
    await receiver.aclose()
    # A call that began before the other one was stored keeps its last part after it.
    await Uploads(database).received(cut, 2 * CHUNK)
    assert [progress.state async for progress in watching(database).follow("v1")] == [VideoState.READY]
    with pytest.raises(NotFoundError):
        await Uploads(database).get(refused)


async def test_more_watchers_than_the_limit_are_refused_until_one_is_gone(
    receiver: Receiver, database: Database
) -> None:
    await cut_off(receiver, uuid.uuid4(), end=CHUNK)
    watch = watching(database, limit=1)
    first = watch.follow("v1")
    await anext(first)
    with pytest.raises(OverloadedError):
        await anext(watch.follow("v1"))
    await first.aclose()
    assert (await anext(watch.follow("v1"))).state is VideoState.UPLOADING


# -- what becomes of an upload while it is received --------------------------------------------------
async def made_old(database: Database) -> None:
    """Uploads that nobody has touched for longer than they are kept."""
    async with database.write() as connection:
        await connection.execute(tables.uploads.update().values(update_time_us=1))


async def resume(receiver: Receiver, upload_id: uuid.UUID, meanwhile: Callable[[], Awaitable[None]]) -> Video:
    """Sends the rest of an upload that stands at CHUNK, and does something when it has begun."""

    async def rest() -> AsyncIterator[bytes]:
        yield CLIP[CHUNK : 2 * CHUNK]
        await meanwhile()
        yield CLIP[2 * CHUNK :]

    return await receiver.receive(upload_id, video("v1"), len(CLIP), CHUNK, rest())


async def test_an_upload_that_goes_on_is_not_forgotten_however_old_it_is(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=CHUNK)
    await made_old(database)
    made = await resume(receiver, upload_id, clean_up(database, media, stored).tidy)
    assert await stored_bytes(media, made.original_url) == CLIP


async def begun(receiver: Receiver, database: Database, *, is_imported: bool) -> uuid.UUID:
    """An upload that was cut off, of a video that may be known already."""
    if is_imported:
        await Catalogue(database).put([video("v1")])
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=CHUNK)
    return upload_id


@pytest.mark.parametrize("is_imported", [True, False])
async def test_an_upload_that_is_forgotten_while_it_is_received_is_sent_again(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings, is_imported: bool
) -> None:
    upload_id = await begun(receiver, database, is_imported=is_imported)

    async def forget() -> None:
        await made_old(database)
        await clean_up(database, media, stored).tidy()

    with pytest.raises(OutOfRangeError, match="from 0 on"):
        await resume(receiver, upload_id, forget)
    await receiver.aclose()
    # Nobody may come back.
    await clean_up(database, media, stored)._files.go()
    assert kept(media) == []
    made = await send(receiver, upload_id)
    await receiver.aclose()
    await clean_up(database, media, stored)._files.go()
    assert await stored_bytes(media, made.original_url) == CLIP
    assert sorted(map(media.url, kept(media))) == sorted([made.original_url, made.poster_url])


@pytest.mark.parametrize("is_imported", [True, False])
async def test_an_upload_that_another_call_finds_bad_while_it_is_received_is_rejected(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings, is_imported: bool
) -> None:
    upload_id = await begun(receiver, database, is_imported=is_imported)

    async def reject() -> None:
        await Uploads(database).reject(upload_id, BadMediaError(MediaProblem.DECODE_BOMB, "takes too long"))

    with pytest.raises(BadMediaError, match="takes too long"):
        await resume(receiver, upload_id, reject)
    await receiver.aclose()
    await clean_up(database, media, stored)._files.go()
    assert kept(media) == []


# -- cleaning ---------------------------------------------------------------------------------------
async def test_uploads_that_were_given_up_are_forgotten_with_all_their_files(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=5 * CHUNK)
    # As a server leaves it that dies before it commits.
    await media.put(f"originals/{upload_id.hex}/{uuid.uuid4().hex}.mp4", b"half")
    await media.put(f"posters/{upload_id.hex}/.{uuid.uuid4().hex}", b"half")
    assert len(kept(media)) >= 3
    await clean_up(database, media, stored).tidy()
    assert (await Uploads(database).get(upload_id)).received_bytes == 5 * CHUNK
    async with beside(clean_up(database, media, stored, upload_keep_s=0.001).run()):
        await eventually(lambda: not kept(media))
    with pytest.raises(NotFoundError):
        await Uploads(database).get(upload_id)


async def test_a_stored_upload_that_is_forgotten_leaves_only_what_its_video_names(
    receiver: Receiver, database: Database, media: MediaStore, stored: Settings
) -> None:
    upload_id = uuid.uuid4()
    made = await send(receiver, upload_id)
    await receiver.aclose()
    await media.put(f"originals/{upload_id.hex}/{uuid.uuid4().hex}.mp4", b"of a call that was cancelled")
    async with beside(clean_up(database, media, stored, upload_keep_s=0.001).run()):
        await eventually(lambda: len(kept(media)) == 2)
    assert await stored_bytes(media, made.original_url) == CLIP
    assert (await stored_bytes(media, made.poster_url))[:2] == b"\xff\xd8"


async def test_uploads_whose_files_cannot_be_removed_stay_and_are_tried_again(
    receiver: Receiver,
    database: Database,
    media: MediaStore,
    stored: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload_id, drop = uuid.uuid4(), MediaStore.drop_parts
    await cut_off(receiver, upload_id, end=5 * CHUNK)

    async def down(*_: object) -> None:
        raise UnavailableError("the storage is not reachable")

    monkeypatch.setattr(MediaStore, "drop_parts", down)
    cleaner = clean_up(database, media, stored, upload_keep_s=0.001)
    await cleaner.tidy()
    await Uploads(database).get(upload_id)
    monkeypatch.setattr(MediaStore, "drop_parts", drop)
    await cleaner.tidy()
    with pytest.raises(NotFoundError):
        await Uploads(database).get(upload_id)


async def test_requests_are_forgotten_after_a_week(
    database: Database, media: MediaStore, stored: Settings
) -> None:
    catalogue = Catalogue(database)
    await catalogue.put([video("v1")])
    week_s = 7 * 24 * 3600
    requests = {str(uuid.uuid4()): age_s for age_s in (0, week_s - 60, week_s + 60)}
    for request_id, age_s in requests.items():
        await catalogue.update("v1", {"title": "x"}, request_id)
        async with database.write() as connection:
            this = tables.video_requests.c.request_id == uuid.UUID(request_id)
            made = int((time.time() - age_s) * 1e6)
            await connection.execute(tables.video_requests.update().where(this).values(create_time_us=made))
    await clean_up(database, media, stored).tidy()
    async with database.read() as connection:
        left = (await connection.execute(sa.select(tables.video_requests.c.request_id))).scalars()
        assert set(map(str, left)) == set(list(requests)[:2])
