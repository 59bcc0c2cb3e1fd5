"""Uploads on their way in: parts, resumption and faults, on every database and two kinds of storage."""

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from receiving import (
    CHUNK,
    CLIP,
    STORAGES,
    chunks,
    cut_off,
    kept,
    new_receiver,
    send,
    stored_bytes,
    video,
    watching,
    with_storage,
)

from keek.v1 import video_service_pb2 as pb
from keek.v1 import video_service_pb2_grpc
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
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.rules import RuleChecker
from keek_server.rpc.videos import VideoServicer
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos import receiver as receiver_module
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.media import MediaStore, open_media
from keek_server.videos.receiver import Receiver
from keek_server.videos.uploads import Uploads
from keek_server.videos.video import VideoState


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


Make = Callable[..., Receiver]


@pytest.fixture
async def make(
    database: Database, media: MediaStore, decoder: Decoder, stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Make]:
    """Makes receivers, as of several servers; at the end, each is closed."""
    monkeypatch.setattr(receiver_module, "_PART_BYTES", 3 * CHUNK)
    made: list[Receiver] = []

    def receiver(own_media: MediaStore = media, **changes: object) -> Receiver:
        made.append(new_receiver(database, own_media, decoder, stored.model_copy(update=changes)))
        return made[-1]

    yield receiver
    for one in made:
        await one.aclose()


@pytest.fixture
def receiver(make: Make) -> Receiver:
    return make()


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
    assert await media.append_parts(upload_id, media.scratch / "none", 1) == 0


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
    assert await media.append_parts(upload_id, media.scratch / "none", 1) == 0


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


# -- parts ------------------------------------------------------------------------------------------
async def test_a_retry_from_the_start_that_is_cut_off_costs_nothing_that_was_durable(
    receiver: Receiver, database: Database, media: MediaStore
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=8 * CHUNK)
    await cut_off(receiver, upload_id, end=CHUNK)
    assert (await Uploads(database).get(upload_id)).received_bytes == 8 * CHUNK
    made = await send(receiver, upload_id, offset=8 * CHUNK)
    assert await stored_bytes(media, made.original_url) == CLIP


async def test_a_part_that_is_lost_sets_the_upload_back_to_where_it_is_missing(
    receiver: Receiver, database: Database, media: MediaStore
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=6 * CHUNK)
    lost = next(path for path in kept(media) if f"/{3 * CHUNK:015d}-" in path)
    media._fs.rm_file(f"{media._root}/{lost}")
    with pytest.raises(OutOfRangeError, match=f"from {3 * CHUNK} on"):
        await send(receiver, upload_id, offset=6 * CHUNK)
    await receiver.aclose()
    assert (await Uploads(database).get(upload_id)).received_bytes == 3 * CHUNK
    made = await send(receiver, upload_id, offset=3 * CHUNK)
    assert await stored_bytes(media, made.original_url) == CLIP


async def test_what_a_server_that_died_left_half_written_is_no_part(
    receiver: Receiver, media: MediaStore
) -> None:
    upload_id = uuid.uuid4()
    await cut_off(receiver, upload_id, end=8 * CHUNK)
    media._write(f"{media._folder('uploads', upload_id)}/.{uuid.uuid4().hex}", b"half")
    made = await send(receiver, upload_id, offset=8 * CHUNK)
    assert await stored_bytes(media, made.original_url) == CLIP
    await receiver.aclose()
    assert not [path for path in kept(media) if path.startswith("uploads/")]


# -- callers that hang ------------------------------------------------------------------------------
async def test_an_upload_whose_bytes_do_not_come_ends_and_gives_its_place_back(
    make: Make, database: Database
) -> None:
    receiver = make(upload_limit=1)
    servicer = VideoServicer(
        Catalogue(database),
        None,  # type: ignore[arg-type]
        receiver,
        watching(database),
        upload_idle_s=60.0,
    )
    server = grpc.aio.server(interceptors=(GuardInterceptor(RuleChecker()),))
    video_service_pb2_grpc.add_VideoServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    upload_id = str(uuid.uuid4())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = video_service_pb2_grpc.VideoServiceStub(channel)
            header = pb.UploadHeader(upload_id=upload_id, video=pb.Video(video_id="v1"), size_bytes=len(CLIP))
            # Where messages come, they have to be there in time.
            for idle_s, messages in ((0.3, []), (2.5, [header]), (2.5, [header, CLIP[:CHUNK]])):
                servicer._upload_idle_s = idle_s
                call = stub.UploadVideo(timeout=30)
                for message in messages:
                    part = {"chunk": message} if isinstance(message, bytes) else {"header": message}
                    await call.write(pb.UploadVideoRequest(**part))
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await call
                assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
                assert f"nothing arrived for {idle_s} s" in (ended.value.details() or "")
    finally:
        await server.stop(0)
    await receiver.aclose()
    assert (await Uploads(database).get(uuid.UUID(upload_id))).received_bytes == CHUNK
    assert (await send(receiver, uuid.UUID(upload_id), offset=CHUNK)).state is VideoState.READY


async def test_no_file_is_removed_on_the_event_loop(
    receiver: Receiver, stored: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, threads = Path.unlink, []

    def noted(self: Path, missing_ok: bool = False) -> None:
        # The class is everybody's: other files are not counted.
        if self.is_relative_to(stored.data_dir):
            threads.append(threading.current_thread())
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    await send(receiver, uuid.uuid4())
    await receiver.aclose()
    assert threads
    assert threading.main_thread() not in threads
