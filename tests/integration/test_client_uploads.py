"""Uploads of both clients: cut off, resumed, repeated, refused; and what becomes of a video."""

import asyncio
import io
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_drivers import DRIVERS, Driver
from client_server import BAD_FILE, PART_BYTES, Fault, Server, error_info, retry_info, serve
from patience import eventually

import keek
from keek.uploads import CHUNK_BYTES

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SIZE = 5 * CHUNK_BYTES + 12_345
CONTENT = os.urandom(SIZE)

Connect = Callable[..., Driver]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Connect]:
    made: list[Driver] = []

    def make(target: str | None = None, **settings: Any) -> Driver:
        made.append(request.param(target or server.target, **settings))
        return made[-1]

    yield make
    for driver in made:
        await driver.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    return path


def _content(server: Server, video_id: str) -> bytes:
    [upload] = [u for u in server.videos.uploads.values() if u.header.video.video_id == video_id]
    return bytes(upload.content)


# -- whole ----------------------------------------------------------------------------------------
async def test_a_file_arrives_whole_with_its_metadata(connect: Connect, server: Server, file: Path) -> None:
    video = keek.Video(video_id="n1", owner_id="o1", tags=["a"], title="One")
    stored = await connect().call("upload_video", file, video)
    assert (stored.video_id, stored.owner_id, list(stored.tags)) == ("n1", "o1", ["a"])
    assert (stored.state, stored.width) == (keek.VideoState.VIDEO_STATE_READY, 720)
    assert _content(server, "n1") == CONTENT
    assert dict(server.faults.attempts) == {"UploadVideo": 1}


async def test_a_video_id_is_made_when_there_is_none(connect: Connect, server: Server, file: Path) -> None:
    stored = await connect().call("upload_video", str(file))
    assert uuid.UUID(hex=stored.video_id)
    assert _content(server, stored.video_id) == CONTENT


async def test_an_open_file_is_uploaded_from_its_start_and_left_open(
    connect: Connect, server: Server
) -> None:
    file = io.BytesIO(b"x" * SIZE)
    file.seek(100)
    await connect().call("upload_video", file, keek.Video(video_id="n1"))
    assert _content(server, "n1") == b"x" * SIZE
    assert not file.closed


async def test_progress_is_told_from_nothing_to_everything(connect: Connect, file: Path) -> None:
    told: list[tuple[int, int]] = []
    await connect().call("upload_video", file, progress=lambda *now: told.append(now))
    sent = [now for now, _ in told]
    assert {size for _, size in told} == {SIZE}
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == (0, SIZE)
    assert sent[1:6] == [CHUNK_BYTES * n for n in range(1, 6)]


async def test_what_the_progress_function_raises_ends_the_upload(connect: Connect, file: Path) -> None:
    def stop(sent: int, size: int) -> None:
        raise LookupError(f"{sent} of {size}")

    with pytest.raises(LookupError, match="0 of"):
        await connect().call("upload_video", file, progress=stop)


# -- cut off --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fault",
    [
        Fault(UNAVAILABLE),
        Fault(UNAVAILABLE, details=[error_info("DEPENDENCY_UNAVAILABLE")]),
        Fault(grpc.StatusCode.CANCELLED),
        Fault(grpc.StatusCode.INTERNAL),
    ],
)
async def test_an_upload_that_is_cut_off_goes_on_from_what_is_durable(
    connect: Connect, server: Server, file: Path, fault: Fault
) -> None:
    told: list[int] = []
    server.faults.cut_uploads.extend([(CHUNK_BYTES, fault), (2 * CHUNK_BYTES, fault)])
    driver = connect()
    await driver.call(
        "upload_video", file, keek.Video(video_id="n1"), progress=lambda sent, _: told.append(sent)
    )
    assert _content(server, "n1") == CONTENT
    headers: list[Any] = server.faults.requests["UploadVideo"]
    assert [header.offset_bytes for header in headers] == [0, PART_BYTES, 3 * PART_BYTES]
    assert len({header.upload_id for header in headers}) == 1
    # No more is sent again than what the server lost of the parts that were cut off.
    cut_off = CHUNK_BYTES + (PART_BYTES + 2 * CHUNK_BYTES) - (1 + 3) * PART_BYTES
    assert server.faults.uploaded_bytes == SIZE + cut_off
    assert told[-1] == SIZE


async def test_without_retries_an_upload_is_not_gone_on_with(
    connect: Connect, server: Server, file: Path
) -> None:
    server.faults.cut_uploads.append((CHUNK_BYTES, Fault(UNAVAILABLE)))
    driver, upload_id = connect(retry=None), str(uuid.uuid4())
    # asyncio's gRPC makes INTERNAL of some calls that end while they send.
    with pytest.raises((keek.UnavailableError, keek.InternalError)):
        await driver.call("upload_video", file, keek.Video(video_id="n1"), upload_id=upload_id)
    assert server.faults.attempts["UploadVideo"] == 1
    # The caller can, with the same upload_id.
    found = await driver.call("get_upload", upload_id)
    assert (found.video_id, found.received_bytes, found.size_bytes) == ("n1", PART_BYTES, SIZE)
    await driver.call("upload_video", file, keek.Video(video_id="n1"), upload_id=upload_id)
    assert server.faults.uploaded_bytes == SIZE + CHUNK_BYTES - PART_BYTES
    assert _content(server, "n1") == CONTENT


async def test_an_upload_whose_acknowledgement_was_lost_is_not_sent_again(
    connect: Connect, server: Server, file: Path
) -> None:
    server.faults.lost_acknowledgements = 2
    stored = await connect().call("upload_video", file, keek.Video(video_id="n1"))
    assert stored.video_id == "n1"
    assert server.faults.attempts["UploadVideo"] == 3
    assert server.faults.uploaded_bytes == SIZE
    assert len(server.videos.uploads) == 1


async def test_an_upload_repeated_with_its_id_sends_nothing(
    connect: Connect, server: Server, file: Path
) -> None:
    driver, upload_id = connect(), str(uuid.uuid4())
    first = await driver.call("upload_video", file, keek.Video(video_id="n1"), upload_id=upload_id)
    again = await driver.call("upload_video", file, keek.Video(video_id="n1"), upload_id=upload_id)
    assert again == first
    assert server.faults.uploaded_bytes == SIZE


async def test_a_server_that_forgot_what_it_had_is_sent_everything(
    connect: Connect, server: Server, file: Path
) -> None:
    server.faults.cut_uploads.append((CHUNK_BYTES, Fault(UNAVAILABLE)))
    # The server that is asked has the bytes; the one that gets the rest does not.
    out_of_range = Fault(grpc.StatusCode.OUT_OF_RANGE, details=[error_info("OUT_OF_RANGE")])
    server.faults.add("UploadVideo", Fault(), out_of_range)
    await connect().call("upload_video", file, keek.Video(video_id="n1"))
    assert server.faults.attempts["UploadVideo"] == 3
    assert _content(server, "n1") == CONTENT


async def test_an_overloaded_server_is_asked_again_when_it_says_when(
    connect: Connect, server: Server
) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    details = [error_info("OVERLOADED"), retry_info(0.5)]
    # The client has sent everything by then.
    server.faults.refused_uploads.append(Fault(code, details=details))
    start = asyncio.get_running_loop().time()
    await connect().call("upload_video", io.BytesIO(b"abc"))
    assert asyncio.get_running_loop().time() - start > 0.5
    # Not when it does not.
    server.faults.refused_uploads.append(Fault(code))
    with pytest.raises(keek.ResourceExhaustedError):
        await connect().call("upload_video", io.BytesIO(b"abc"))


@pytest.mark.parametrize("away_s", [0.5, 3.0])
async def test_an_upload_survives_a_restart_of_the_server(
    connect: Connect, file: Path, away_s: float
) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve())
        first.faults.hold_uploads_at = 2 * CHUNK_BYTES
        upload = asyncio.create_task(
            connect(first.target).call("upload_video", file, keek.Video(video_id="n1"))
        )
        await eventually(lambda: first.faults.uploaded_bytes == 2 * CHUNK_BYTES)
        await stack.aclose()
        await asyncio.sleep(away_s)
        first.faults.hold_uploads_at = None
        second = await stack.enter_async_context(serve(port=first.port, before=first))
        async with asyncio.timeout(30):
            await upload
        assert _content(second, "n1") == CONTENT
        headers: list[Any] = second.faults.requests["UploadVideo"]
        assert headers[-1].offset_bytes >= PART_BYTES
        assert len({header.upload_id for header in headers}) == 1


async def test_a_call_that_stalls_is_replaced_by_one_that_goes_on(
    connect: Connect, server: Server, file: Path
) -> None:
    driver = connect(timeouts=keek.Timeouts(upload_try_s=3.0))
    server.faults.add("UploadVideo", Fault(delay_s=30))
    await driver.call("upload_video", file, keek.Video(video_id="n1"))
    # More than one other, where the machine pauses for longer than a call may take.
    assert server.faults.attempts["UploadVideo"] > 1
    assert _content(server, "n1") == CONTENT


async def test_the_whole_upload_has_a_deadline(connect: Connect, server: Server, file: Path) -> None:
    server.faults.pause_s = 30
    start = asyncio.get_running_loop().time()
    with pytest.raises(keek.DeadlineExceededError):
        await connect().call("upload_video", file, timeout_s=0.5)
    assert asyncio.get_running_loop().time() - start < 15


async def test_an_upload_that_gets_nowhere_is_given_up(connect: Connect, server: Server) -> None:
    retry = keek.RetryPolicy(max_backoff_s=0.1, upload_patience_s=3.0)
    server.faults.add("UploadVideo", *[Fault(UNAVAILABLE, "still down", delay_s=0.03)] * 500)
    with pytest.raises(keek.UnavailableError, match="still down"):
        await connect(retry=retry).call("upload_video", io.BytesIO(b"abc"))
    # One more at least, also where the machine pauses for longer than the upload's patience.
    assert 1 < server.faults.attempts["UploadVideo"] < 50


async def test_nobody_listening_is_unavailable_soon(
    connect: Connect, file: Path, unused_tcp_port: int
) -> None:
    start = asyncio.get_running_loop().time()
    with pytest.raises(keek.UnavailableError):
        await connect(f"127.0.0.1:{unused_tcp_port}").call("upload_video", file)
    assert asyncio.get_running_loop().time() - start < 10


async def test_closing_the_client_ends_its_uploads(connect: Connect, server: Server, file: Path) -> None:
    server.faults.pause_s = 30
    driver = connect()
    upload = asyncio.create_task(driver.call("upload_video", file))
    await eventually(lambda: server.faults.uploaded_bytes > 0)
    await driver.close()
    with pytest.raises(keek.CallCancelledError):
        async with asyncio.timeout(10):
            await upload


# -- refused --------------------------------------------------------------------------------------
async def test_a_bad_video_is_an_error_with_its_reason(
    connect: Connect, server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(BAD_FILE + bytes(SIZE))
    with pytest.raises(keek.InvalidArgumentError) as caught:
        await connect().call("upload_video", path)
    assert caught.value.reason == "TRUNCATED"
    assert server.faults.attempts["UploadVideo"] == 1


async def test_a_second_file_for_a_video_is_refused(connect: Connect, file: Path) -> None:
    driver = connect()
    await driver.call("upload_video", file, keek.Video(video_id="n1"))
    with pytest.raises(keek.AlreadyExistsError):
        await driver.call("upload_video", io.BytesIO(b"other"), keek.Video(video_id="n1"))


@pytest.mark.parametrize("change", ["longer", "shorter"])
async def test_a_file_that_changes_meanwhile_is_an_error_and_no_video(
    connect: Connect, server: Server, file: Path, change: str
) -> None:
    def change_it(sent: int, _: int) -> None:
        if sent == 2 * CHUNK_BYTES:
            with file.open("r+b") as open_file:
                open_file.truncate(SIZE + 1 if change == "longer" else SIZE - 1)

    with pytest.raises(keek.FileChangedError, match="changed while"):
        await connect().call("upload_video", file, keek.Video(video_id="n1"), progress=change_it)
    assert not server.videos.stored


async def test_a_file_that_is_not_there_is_an_os_error(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect().call("upload_video", tmp_path / "none.mp4")


async def test_an_upload_that_is_not_known_is_not_found(connect: Connect) -> None:
    with pytest.raises(keek.NotFoundError):
        await connect().call("get_upload", str(uuid.uuid4()))


# -- watching -------------------------------------------------------------------------------------
async def test_a_video_is_watched_until_it_is_ready(connect: Connect, file: Path) -> None:
    driver = connect()
    await driver.call("upload_video", file, keek.Video(video_id="n1"))
    states = [now.state for now in await driver.collect("watch_video", "n1")]
    names = [keek.VideoState.Name(state).removeprefix("VIDEO_STATE_") for state in states]
    assert names == ["DECODING", "EMBEDDING", "READY"]


async def test_a_rejected_upload_is_watched_until_its_reason(connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(BAD_FILE)
    driver = connect()
    with pytest.raises(keek.InvalidArgumentError):
        await driver.call("upload_video", path, keek.Video(video_id="n1"))
    *_, last = await driver.collect("watch_video", "n1")
    assert (last.state, last.reason) == (keek.VideoState.VIDEO_STATE_REJECTED, "the file ends too early")


async def test_a_video_that_is_not_known_cannot_be_watched(connect: Connect) -> None:
    with pytest.raises(keek.NotFoundError):
        await connect().collect("watch_video", "none")
