"""Uploads: what is read of a file, when they go on, and when they are given up."""

import gzip
import io
import os
import uuid
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keek
from keek.cli.importing.files import digest
from keek.sources import Source
from keek.uploads import CHUNK_BYTES, Upload, identified, is_retriable, upload_id_of

CODE = grpc.StatusCode
POLICY = keek.RetryPolicy(initial_backoff_s=0.1, max_backoff_s=0.8, upload_patience_s=60)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _upload(
    clock: Clock,
    content: bytes = b"abc",
    *,
    retry: keek.RetryPolicy | None = POLICY,
    upload_id: str | None = None,
) -> Upload:
    return Upload(
        Source(io.BytesIO(content)),
        None,
        upload_id=upload_id,
        progress=None,
        retry=retry,
        timeout_s=3600,
        clock=clock,
    )


def _unavailable(reason: str = "", retry_after_s: float | None = None) -> keek.CallError:
    details = keek.ErrorDetails(reason=reason, retry_after_s=retry_after_s)
    return keek.UnavailableError(CODE.UNAVAILABLE, "away", details)


# -- the file -------------------------------------------------------------------------------------
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(1, 200))
def test_any_part_of_a_file_is_read_exactly(content: bytes, offset: int, size: int) -> None:
    with Source(io.BytesIO(content)) as source:
        assert source.size_bytes == len(content)
        if offset + size <= len(content):
            assert source.read(offset, size) == content[offset : offset + size]
        else:
            with pytest.raises(keek.FileChangedError):
                source.read(offset, size)


def test_a_file_that_gives_little_at_a_time_is_read_exactly() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    with Source(Dripping(b"0123456789")) as source:
        assert source.read(1, 8) == b"12345678"


def test_a_file_that_decompresses_has_the_size_of_what_it_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4.gz"
    content = bytes(10_000)
    path.write_bytes(gzip.compress(content))
    with gzip.open(path) as file, Source(file) as source:  # type: ignore[arg-type]
        assert source.size_bytes == len(content)
        assert source.read(9_000, 1_000) == content[9_000:]


@pytest.mark.parametrize("change", ["longer", "shorter", "touched", "rewritten"])
def test_a_file_that_changed_is_an_error_that_names_it(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(1, 1))
    with Source(path) as source:
        assert source.read(0, 5) == b"01234"
        with path.open("r+b") as file:
            if change == "longer":
                file.seek(0, os.SEEK_END)
                file.write(b"x")
            elif change == "shorter":
                file.truncate(9)
            elif change == "rewritten":
                file.write(b"9876543210")
        if change == "touched":
            os.utime(path)
        with pytest.raises(keek.FileChangedError, match=r"a\.mp4 changed"):
            source.read(5, 4)


def test_a_pipe_or_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="is not a regular file"):
        Source(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="not a regular file"):
        digest(tmp_path / "pipe.mp4")
    with pytest.raises(IsADirectoryError):
        Source(tmp_path)


def test_a_path_is_closed_and_the_callers_own_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    with path.open("rb") as file:
        file.seek(2)
        with Source(file) as source:
            assert source.read(0, 3) == b"abc"
        assert not file.closed
    with Source(str(path)) as source:
        pass
    with pytest.raises(ValueError, match="closed"):
        source.read(0, 1)


# -- requests -------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
async def test_requests_are_a_header_and_the_rest_of_the_file_in_chunks(offset: int) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 7)
    upload = _upload(Clock(), content)
    upload.received(offset)
    header, *chunks = list(upload.attempt().requests())
    assert header.header.upload_id == upload.upload_id
    assert (header.header.offset_bytes, header.header.size_bytes) == (offset, len(content))
    assert b"".join(request.chunk for request in chunks) == content[offset:]
    assert all(0 < len(request.chunk) <= CHUNK_BYTES for request in chunks)
    assert [request async for request in upload.attempt().arequests()] == [header, *chunks]


def test_a_call_that_has_ended_reads_and_tells_nothing_more() -> None:
    told: list[int] = []
    source = Source(io.BytesIO(bytes(4 * CHUNK_BYTES)))
    upload = Upload(
        source,
        None,
        upload_id=None,
        progress=lambda sent, _: told.append(sent),
        retry=POLICY,
        timeout_s=60,
    )
    attempt = upload.attempt()
    requests = attempt.requests()
    next(requests)
    next(requests)
    attempt.end()
    assert list(requests) == []
    assert told == [0]


def test_a_video_id_is_made_unless_there_is_one_and_the_callers_video_is_not_changed() -> None:
    video = keek.Video(title="One")
    made = identified(video)
    assert (made.title, video.video_id) == ("One", "")
    assert uuid.UUID(hex=made.video_id).version == 4
    assert identified(keek.Video(video_id="v1")) == keek.Video(video_id="v1")
    assert identified(None).video_id != identified(None).video_id


def test_an_upload_id_is_the_same_for_the_same_content_of_the_same_video_alone() -> None:
    first = upload_id_of("v1", b"digest")
    assert first == upload_id_of("v1", b"digest") == str(uuid.UUID(first))
    assert len({first, upload_id_of("v2", b"digest"), upload_id_of("v1", b"other")}) == 3


# -- going on -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_unavailable(), True),
        (_unavailable("DEPENDENCY_UNAVAILABLE"), True),
        (keek.DeadlineExceededError(CODE.DEADLINE_EXCEEDED, ""), True),
        (keek.OutOfRangeError(CODE.OUT_OF_RANGE, ""), True),
        (keek.InternalError(CODE.INTERNAL, "Received RST_STREAM with error code 2"), True),
        (keek.InternalError(CODE.INTERNAL, "", keek.ErrorDetails("INTERNAL")), False),
        (keek.CallCancelledError(CODE.CANCELLED, ""), True),
        (keek.ResourceExhaustedError(CODE.RESOURCE_EXHAUSTED, ""), False),
        (
            keek.ResourceExhaustedError(
                CODE.RESOURCE_EXHAUSTED, "", keek.ErrorDetails("OVERLOADED", retry_after_s=0.5)
            ),
            True,
        ),
        (keek.InvalidArgumentError(CODE.INVALID_ARGUMENT, ""), False),
        (keek.AlreadyExistsError(CODE.ALREADY_EXISTS, ""), False),
        (keek.UnimplementedError(CODE.UNIMPLEMENTED, ""), False),
    ],
)
def test_an_upload_goes_on_after_what_may_pass(error: keek.CallError, expected: bool) -> None:
    assert is_retriable(error) is expected


def test_a_server_that_was_never_reached_is_given_up_after_max_attempts() -> None:
    upload = _upload(Clock())
    for _ in range(POLICY.max_attempts - 1):
        upload.wait_s(_unavailable())
    with pytest.raises(keek.UnavailableError):
        upload.wait_s(_unavailable())


@pytest.mark.parametrize("reached", ["it answered", "it took the header", "it gave a reason"])
def test_a_server_that_was_reached_is_waited_for_until_the_patience_ends(reached: str) -> None:
    clock = Clock()
    upload = _upload(clock)
    if reached == "it answered":
        upload.received(0)
    elif reached == "it took the header":
        attempt = upload.attempt()
        list(attempt.requests())
        upload.ended(attempt)
    error = _unavailable("DEPENDENCY_UNAVAILABLE" if reached == "it gave a reason" else "")
    for _ in range(20):
        upload.wait_s(error)
        clock.now += 3
    clock.now += 1
    with pytest.raises(keek.UnavailableError):
        upload.wait_s(error)


def test_bytes_that_arrived_renew_the_patience_and_nothing_else_does() -> None:
    clock = Clock()
    upload = _upload(clock, bytes(100))
    for received in (10, 20, 30):
        upload.received(received)
        upload.wait_s(_unavailable())
        clock.now += 59
    upload.received(20)
    clock.now += 2
    with pytest.raises(keek.UnavailableError):
        upload.wait_s(_unavailable())


def test_an_overloaded_server_is_waited_for_until_the_deadline() -> None:
    clock = Clock()
    upload = _upload(clock)
    details = keek.ErrorDetails("OVERLOADED", retry_after_s=2.0)
    for _ in range(100):
        assert upload.wait_s(keek.ResourceExhaustedError(CODE.RESOURCE_EXHAUSTED, "", details)) >= 1.6
        clock.now += 30
        upload.received(0)


def test_an_overloaded_server_is_asked_ever_more_rarely_and_anew_when_bytes_have_arrived() -> None:
    clock = Clock()
    upload = _upload(clock, bytes(100))
    details = keek.ErrorDetails("OVERLOADED", retry_after_s=2.0)
    overloaded = keek.ResourceExhaustedError(CODE.RESOURCE_EXHAUSTED, "", details)
    waits: list[float] = []
    while upload.left_s() > 120:
        waits.append(upload.wait_s(overloaded))
        clock.now += waits[-1]
        upload.received(0)
    assert len(waits) < 180
    for wait, longest in zip(waits, (2, 4, 8, 16, *[30] * len(waits)), strict=False):
        assert max(2, 0.79 * longest) <= wait <= longest
    upload.received(10)
    assert upload.wait_s(overloaded) == 2
    # What asks for more gets it.
    slow = keek.ErrorDetails("OVERLOADED", retry_after_s=45.0)
    assert upload.wait_s(keek.ResourceExhaustedError(CODE.RESOURCE_EXHAUSTED, "", slow)) == 45
    # Once it is not overloaded any more, it is not so patient.
    assert upload.wait_s(_unavailable()) < 1


def test_calls_that_took_too_long_are_followed_by_others_but_not_questions_without_an_answer() -> None:
    clock = Clock()
    upload = _upload(clock)
    late = keek.DeadlineExceededError(CODE.DEADLINE_EXCEEDED, "")
    for _ in range(5):
        attempt = upload.attempt()
        list(attempt.requests())
        upload.ended(attempt)
        upload.wait_s(late)
        clock.now += 300
        upload.received(3)
    upload.wait_s(late)
    clock.now += 61
    with pytest.raises(keek.DeadlineExceededError):
        upload.wait_s(late)


def test_waits_grow_to_their_limit_and_follow_what_the_server_asks_for() -> None:
    upload = _upload(Clock())
    upload.received(0)
    waits = [upload.wait_s(_unavailable()) for _ in range(6)]
    for wait, expected in zip(waits, (0.1, 0.2, 0.4, 0.8, 0.8, 0.8), strict=True):
        assert 0.79 * expected <= wait <= 1.21 * expected
    assert upload.wait_s(_unavailable("DEPENDENCY_UNAVAILABLE", retry_after_s=5)) == 5


def test_nothing_is_waited_for_beyond_the_deadline() -> None:
    clock = Clock()
    upload = _upload(clock)
    upload.received(0)
    clock.now += 3599.99
    assert upload.wait_s(_unavailable("DEPENDENCY_UNAVAILABLE", retry_after_s=5)) <= 0.02
    clock.now += 1
    assert upload.left_s() == 0
    with pytest.raises(keek.UnavailableError):
        upload.wait_s(_unavailable())


def test_without_a_retry_policy_an_upload_does_not_go_on() -> None:
    with pytest.raises(keek.UnavailableError):
        _upload(Clock(), retry=None).wait_s(_unavailable("DEPENDENCY_UNAVAILABLE"))


def test_the_server_is_asked_first_when_the_caller_knows_the_upload_or_a_call_has_failed() -> None:
    assert _upload(Clock(), upload_id=str(uuid.uuid4())).must_ask
    upload = _upload(Clock())
    assert not upload.must_ask
    upload.ended(upload.attempt())
    assert upload.must_ask
    upload.received(2)
    assert not upload.must_ask
    assert [request.chunk for request in upload.attempt().requests()][1:] == [b"c"]
