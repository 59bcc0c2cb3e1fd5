"""Uploads on their way in: parts, resumption and faults, on every database and two kinds of storage."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from benchmarks.clips import any_clip, clip_bytes

from keek_server.errors import (
    AlreadyExistsError,
    BadMediaError,
    InvalidArgumentError,
    MediaProblem,
    NotFoundError,
    OutOfRangeError,
    OverloadedError,
    UnavailableError,
)
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos import receiver as receiver_module
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.decoding.types import FrameShape
from keek_server.videos.ingest import Ingest
from keek_server.videos.media import MediaStore, open_media
from keek_server.videos.receiver import Receiver
from keek_server.videos.uploads import Uploads
from keek_server.videos.video import Video, VideoState

CLIP = clip_bytes(any_clip(3, duration_s=1.5))
CHUNK = 4096


class NoClip:
    """Stands for the embedder of a server whose release has no CLIP."""

    def frame_shape(self) -> FrameShape | None:
        return None

    def changed(self) -> None:
        pass


def video(video_id: str) -> Video:
    return Video(video_id, "ann", ["cats"], 0.0, "A cat", 1_700_000_000_000_000)


@pytest.fixture(params=["folder", "objects"])
def stored(request: pytest.FixtureRequest, settings: Settings) -> Settings:
    """Settings with a folder as the storage, and with an object store (fsspec's in-memory one)."""
    if request.param == "folder":
        return settings
    return settings.model_copy(update={"media_url": f"memory://{uuid.uuid4().hex}/media"})


@pytest.fixture
async def media(stored: Settings) -> AsyncIterator[MediaStore]:
    async with open_media(stored) as opened:
        yield opened


@pytest.fixture(scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    async with open_decoder(Settings()) as opened:
        yield opened


Make = Callable[..., Receiver]


@pytest.fixture
async def make(
    database: Database, media: MediaStore, decoder: Decoder, stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes receivers, as of several servers; at the end, each is closed."""
    monkeypatch.setattr(receiver_module, "_PART_BYTES", 3 * CHUNK)
    made: list[Receiver] = []

    def receiver(own_media: MediaStore = media, **changes: object) -> Receiver:
        settings, catalogue = stored.model_copy(update=changes), Catalogue(database)
        ingest = Ingest(database, catalogue, own_media, decoder, NoClip(), settings)  # type: ignore[arg-type]
        made.append(Receiver(Uploads(database), catalogue, own_media, ingest, settings))
        return made[-1]

    yield receiver
    for one in made:
        await one.aclose()


@pytest.fixture
def receiver(make: Make) -> Receiver:
    return make()


async def chunks(content: bytes, *, fail: BaseException | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(content), CHUNK):
        yield content[start : start + CHUNK]
    if fail is not None:
        raise fail


async def send(
    receiver: Receiver, upload_id: uuid.UUID, *, offset: int = 0, content: bytes = CLIP, size: int = len(CLIP)
) -> Video:
    return await receiver.receive(upload_id, video("v1"), size, offset, chunks(content[offset:]))


async def cut_off(receiver: Receiver, upload_id: uuid.UUID, *, start: int = 0, end: int) -> None:
    """A call that dies after some bytes."""
    with pytest.raises(ConnectionError):
        await receiver.receive(
            upload_id, video("v1"), len(CLIP), start, chunks(CLIP[start:end], fail=ConnectionError())
        )
    await receiver.aclose()


async def stored_bytes(media: MediaStore, url: str) -> bytes:
    target = media.scratch / "check"
    await media.fetch(url, target, max_bytes=10**9)
    return target.read_bytes()


async def test_an_upload_becomes_a_video_with_its_file_and_a_poster(
    receiver: Receiver, media: MediaStore, database: Database
) -> None:
    upload_id = uuid.uuid4()
    made = await send(receiver, upload_id)
    assert made.state is VideoState.READY
    assert made.duration_s == pytest.approx(1.5, abs=0.1)
    assert made.width > 0
    assert await stored_bytes(media, made.original_url) == CLIP
    assert (await stored_bytes(media, made.poster_url))[:2] == b"\xff\xd8"
    assert await Catalogue(database).get("v1") == made
    await receiver.aclose()
    assert list(media.scratch.iterdir()) == [media.scratch / "check"]
    with pytest.raises(NotFoundError):
        await media.append_parts(upload_id, media.scratch / "none", 1)


async def test_a_repeated_upload_gives_the_same_video_without_its_bytes(receiver: Receiver) -> None:
    upload_id = uuid.uuid4()
    made = await send(receiver, upload_id)
    assert await receiver.receive(upload_id, video("v1"), len(CLIP), 0, chunks(b"")) == made


async def test_an_upload_that_was_cut_off_goes_on_at_another_server_where_it_stopped(
    receiver: Receiver, make: Make, database: Database, stored: Settings, media: MediaStore
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=5 * CHUNK)
    assert (await Uploads(database).get(upload_id)).received_bytes == 5 * CHUNK
    async with open_media(stored) as other_media:
        other = make(other_media)
        await cut_off(other, upload_id, start=5 * CHUNK, end=9 * CHUNK)
        assert (await Uploads(database).get(upload_id)).received_bytes == 9 * CHUNK
        # From an offset before what has arrived: bytes that come twice are no harm.
        made = await send(other, upload_id, offset=4 * CHUNK)
        await other.aclose()
    assert await stored_bytes(media, made.original_url) == CLIP


async def test_an_offset_behind_what_arrived_is_refused_and_says_where_to_go_on(receiver: Receiver) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=4 * CHUNK)
    with pytest.raises(OutOfRangeError, match=f"from {4 * CHUNK} on"):
        await send(receiver, upload_id, offset=5 * CHUNK)
    with pytest.raises(OutOfRangeError, match="from 0 on"):
        await send(receiver, uuid.uuid4(), offset=CHUNK)


async def test_too_few_and_too_many_bytes_are_refused(receiver: Receiver, database: Database) -> None:
    upload_id = uuid.uuid4()
    with pytest.raises(InvalidArgumentError, match=f"ended after {len(CLIP)} bytes"):
        await send(receiver, upload_id, size=len(CLIP) + 1)
    with pytest.raises(InvalidArgumentError, match="larger than"):
        await send(receiver, uuid.uuid4(), size=len(CLIP) - 1)
    with pytest.raises(NotFoundError):
        await Catalogue(database).get("v1")


async def test_a_bad_file_is_refused_for_good_and_leaves_nothing(
    receiver: Receiver, database: Database, media: MediaStore
) -> None:
    upload_id, text = uuid.uuid4(), b"this is not a video " * 1000
    for _ in range(2):
        with pytest.raises(BadMediaError) as refused:
            await send(receiver, upload_id, content=text, size=len(text))
        assert refused.value.reason is MediaProblem.NOT_A_VIDEO
    upload = await Uploads(database).get(upload_id)
    assert (upload.state, upload.problem) == (VideoState.REJECTED, "NOT_A_VIDEO")
    with pytest.raises(NotFoundError):
        await Catalogue(database).get("v1")
    await receiver.aclose()
    with pytest.raises(NotFoundError):
        await media.append_parts(upload_id, media.scratch / "none", 1)


async def test_a_file_that_is_too_large_is_refused_before_its_bytes(
    make: Make,
) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("bytes were read")
        yield b""

    with pytest.raises(BadMediaError) as refused:
        await make(video_max_bytes=len(CLIP) - 1).receive(uuid.uuid4(), video("v1"), len(CLIP), 0, never())
    assert refused.value.reason is MediaProblem.TOO_LARGE


async def test_a_video_with_a_file_takes_no_other_one(receiver: Receiver) -> None:
    await send(receiver, uuid.uuid4())
    with pytest.raises(AlreadyExistsError):
        await send(receiver, uuid.uuid4())


async def test_an_upload_id_of_another_file_is_refused(receiver: Receiver) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=CHUNK)
    with pytest.raises(InvalidArgumentError, match="another file"):
        await send(receiver, upload_id, size=len(CLIP) + 1)
    with pytest.raises(InvalidArgumentError, match="another file"):
        await receiver.receive(upload_id, video("v2"), len(CLIP), 0, chunks(CLIP))


async def test_two_calls_of_one_upload_at_once_make_one_video(
    receiver: Receiver, database: Database, media: MediaStore
) -> None:
    upload_id = uuid.uuid4()
    first, second = await asyncio.gather(send(receiver, upload_id), send(receiver, upload_id))
    assert first == second
    assert await stored_bytes(media, first.original_url) == CLIP


async def test_a_call_that_is_cancelled_while_the_file_is_looked_at_can_be_repeated_without_bytes(
    receiver: Receiver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, looked = uuid.uuid4(), asyncio.Event()
    decode = Decoder.decode_video

    async def hang(*_: object) -> None:
        looked.set()
        await asyncio.sleep(3600)

    monkeypatch.setattr(Decoder, "decode_video", hang)
    call = asyncio.create_task(send(receiver, upload_id))
    await looked.wait()
    assert (await Uploads(database).get(upload_id)).state is VideoState.DECODING
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await receiver.aclose()
    upload = await Uploads(database).get(upload_id)
    assert (upload.state, upload.received_bytes) == (VideoState.UPLOADING, len(CLIP))
    monkeypatch.setattr(Decoder, "decode_video", decode)
    made = await send(receiver, upload_id, offset=len(CLIP))
    assert made.state is VideoState.READY


async def test_a_storage_that_is_down_is_told_and_the_upload_goes_on_later(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id, put = uuid.uuid4(), MediaStore.put

    async def down(*_: object) -> str:
        raise UnavailableError("the storage is not reachable")

    monkeypatch.setattr(MediaStore, "put", down)
    with pytest.raises(UnavailableError):
        await send(receiver, upload_id)
    await receiver.aclose()
    monkeypatch.setattr(MediaStore, "put", put)
    assert (await send(receiver, upload_id, offset=len(CLIP))).state is VideoState.READY


async def test_more_uploads_than_the_limit_are_refused_at_the_door(
    make: Make,
) -> None:
    receiver = make(upload_limit=1)
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        waiting.set()
        await go_on.wait()
        yield CLIP

    first = asyncio.create_task(receiver.receive(uuid.uuid4(), video("v1"), len(CLIP), 0, slow()))
    await waiting.wait()
    with pytest.raises(OverloadedError):
        await send(receiver, uuid.uuid4())
    go_on.set()
    assert (await first).video_id == "v1"


async def test_uploads_that_were_given_up_are_forgotten_with_their_parts(
    receiver: Receiver, database: Database, media: MediaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=5 * CHUNK)
    await media.append_parts(upload_id, media.scratch / "some", CHUNK)
    monkeypatch.setattr(receiver, "_settings", receiver._settings.model_copy(update={"upload_keep_s": 0.001}))
    cleaner = asyncio.create_task(receiver.clean())
    async with asyncio.timeout(10):
        while True:
            try:
                await Uploads(database).get(upload_id)
            except NotFoundError:
                break
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    cleaner.cancel()
    with pytest.raises(NotFoundError):
        await media.append_parts(upload_id, media.scratch / "none", 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/etc/passwd", "no prefix"),
        ("{allowed}/../secret.mp4", "no prefix"),
        ("{allowed}-not/clip.mp4", "no prefix"),
        ("{allowed}/link.mp4", "no prefix"),
        ("file://{allowed}/../secret.mp4", "no prefix"),
        ("https://example.org/clip.mp4", "no prefix"),
        ("zip://x.mp4::file://{allowed}/a.zip", "chain"),
        ("s3://videos/%2e%2e/secret", "relative"),
        ("s3://videos-not/clip.mp4", "no prefix"),
    ],
)
async def test_a_source_outside_the_allowed_prefixes_is_refused(
    tmp_path: Path, source: str, reason: str
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    (allowed / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    settings = Settings(data_dir=tmp_path / "data", video_sources=(str(allowed), "s3://videos/"))
    async with open_media(settings) as media:
        assert media.check_source(f"{allowed}/clip.mp4") == f"file://{allowed}/clip.mp4"
        assert media.check_source("s3://videos/clip.mp4") == "s3://videos/clip.mp4"
        with pytest.raises(InvalidArgumentError, match=reason):
            media.check_source(source.format(allowed=allowed))


async def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs.mp4").write_bytes(CLIP)
    async with open_media(Settings(data_dir=tmp_path / "data")) as media:
        await media.remove(f"file://{tmp_path}/theirs.mp4")
        own = await media.put("originals/own.mp4", b"own")
        await media.remove(own)
        await media.remove(own)
        with pytest.raises(NotFoundError):
            await media.fetch(own, media.scratch / "own", max_bytes=10)
    assert (tmp_path / "theirs.mp4").exists()
