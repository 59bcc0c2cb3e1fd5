"""Uploads: one file, whatever number of calls it takes. The same for both clients."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from keek.channel import RetryPolicy
from keek.errors import (
    CallCancelledError,
    CallError,
    DeadlineExceededError,
    InternalError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from keek.sources import Source
from keek.v1.video_service_pb2 import UploadHeader, UploadVideoRequest, Video

CHUNK_BYTES: Final = 512 << 10
"""Of the file in one message."""

Progress = Callable[[int, int], None]
"""Called with the bytes sent and the bytes of the file."""


def identified(video: Video | None) -> Video:
    """A copy of `video`, with a new `video_id` unless it has one."""
    copy = Video()
    if video is not None:
        copy.CopyFrom(video)
    copy.video_id = copy.video_id or uuid.uuid4().hex
    return copy


def upload_id_of(video_id: str, content_digest: bytes) -> str:
    """The upload_id that is the same whenever this content is uploaded as this video."""
    return str(uuid.uuid5(_UPLOADS, f"{video_id}\n{content_digest.hex()}"))


_UPLOADS: Final = uuid.UUID("5a3e0f3c-53c4-4f2b-9d1b-0f1f4b7f2d67")


def is_retriable(error: CallError) -> bool:
    """Whether an upload goes on after `error`."""
    if isinstance(error, UnavailableError | DeadlineExceededError | OutOfRangeError):
        return True
    if isinstance(error, ResourceExhaustedError):
        return error.retry_after_s is not None
    # A connection that was reset, or a server that stops: Keek's own errors give a reason. Also gRPC's
    # asyncio stack, which loses the server's status when a message is on its way while the call ends.
    return isinstance(error, InternalError | CallCancelledError) and not error.reason


class Attempt:
    """The requests of one call, and what went wrong while they were made.

    gRPC reads them in a thread or task of its own, which may outlive the call.
    """

    def __init__(self, source: Source, header: UploadHeader, progress: Progress | None) -> None:
        self._source: Final = source
        self._header: Final = header
        self._progress: Final = progress
        self._over = False
        self.error: Exception | None = None
        """Of the file, or of the caller's own progress function."""
        self.connected = False
        """Whether a server took the header."""

    def requests(self) -> Iterator[UploadVideoRequest]:
        """The header, then the file from the header's offset on."""
        try:
            yield UploadVideoRequest(header=self._header)
            self.connected = True
            for offset, size in self._spans():
                yield UploadVideoRequest(chunk=self._source.read(offset, size))
                self._tell(offset + size)
        except Exception as error:  # noqa: BLE001 - handed back to the caller, whom gRPC would not tell
            self.error = error

    async def arequests(self) -> AsyncIterator[UploadVideoRequest]:
        """As `requests`; a thread reads the file."""
        try:
            yield UploadVideoRequest(header=self._header)
            self.connected = True
            for offset, size in self._spans():
                chunk = await asyncio.to_thread(self._source.read, offset, size)
                yield UploadVideoRequest(chunk=chunk)
                self._tell(offset + size)
        except Exception as error:  # noqa: BLE001 - handed back to the caller, whom gRPC would not tell
            self.error = error

    def end(self) -> None:
        """Nothing more is read or told.

        Raises:
            Exception: What went wrong on this side: with it the server's answer says nothing.
        """
        self._over = True
        if self.error is not None:
            raise self.error

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Offset and size of each chunk."""
        self._tell(self._header.offset_bytes)
        for offset in range(self._header.offset_bytes, self._header.size_bytes, CHUNK_BYTES):
            if self._over:
                return
            yield offset, min(CHUNK_BYTES, self._header.size_bytes - offset)

    def _tell(self, sent_bytes: int) -> None:
        if self._progress is not None and not self._over:
            self._progress(sent_bytes, self._header.size_bytes)


class Upload:
    """One upload: where it goes on, how long it waits, and when it is given up.

    Before a server was reached, it is given up after `RetryPolicy.max_attempts`; later, when
    nothing more of it has arrived for `RetryPolicy.upload_patience_s`.
    """

    def __init__(
        self,
        source: Source,
        video: Video | None,
        *,
        upload_id: str | None,
        progress: Progress | None,
        retry: RetryPolicy | None,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.upload_id: Final = upload_id or str(uuid.uuid4())
        self.must_ask = upload_id is not None
        """Whether the server may have bytes of it already."""
        self._source: Final = source
        self._video: Final = identified(video)
        self._progress: Final = progress
        self._retry: Final = retry
        self._clock: Final = clock
        self._deadline: Final = clock() + timeout_s
        self._received_bytes = 0
        self._reached = False
        self._has_tried = False
        """Whether the call that failed last was one that sends."""
        self._failure_count = 0
        self._overload_count = 0
        """Refusals for overload, one after the other."""
        self._failing_since: float | None = None

    def left_s(self) -> float:
        """Seconds until the deadline of the whole upload."""
        return max(0.0, self._deadline - self._clock())

    def received(self, received_bytes: int) -> None:
        """Goes on from there: a server said that this much is durable."""
        self._reached, self.must_ask = True, False
        if received_bytes > self._received_bytes:
            self._failure_count, self._overload_count, self._failing_since = 0, 0, None
        self._received_bytes = min(received_bytes, self._source.size_bytes)

    def attempt(self) -> Attempt:
        """The next call."""
        header = UploadHeader(
            upload_id=self.upload_id,
            video=self._video,
            size_bytes=self._source.size_bytes,
            offset_bytes=self._received_bytes,
        )
        return Attempt(self._source, header, self._progress)

    def ended(self, attempt: Attempt) -> None:
        """After each call, however it ended.

        Raises:
            Exception: As `Attempt.end`.
        """
        self._reached = self._reached or attempt.connected
        self._has_tried = self.must_ask = True
        attempt.end()

    def finish(self) -> None:
        """Tells that everything was sent."""
        if self._progress is not None:
            self._progress(self._source.size_bytes, self._source.size_bytes)

    def wait_s(self, error: CallError) -> float:
        """Seconds to wait before the upload goes on.

        Raises:
            CallError: `error`, when it does not.
        """
        self._reached = self._reached or bool(error.reason)
        self._failure_count += 1
        self._overload_count = self._overload_count + 1 if isinstance(error, ResourceExhaustedError) else 0
        if self._failing_since is None and not self._is_of_a_live_server(error):
            self._failing_since = self._clock()
        self._has_tried = False
        if self._retry is None or not is_retriable(error) or self._is_hopeless(self._retry):
            raise error
        asked_s = error.details.retry_after_s or 0.0
        wait_s = self._overload_wait_s(self._retry, asked_s) or self._backoff_s(self._retry)
        return min(max(wait_s, asked_s), self.left_s())

    def _backoff_s(self, retry: RetryPolicy) -> float:
        exponent = min(self._failure_count - 1, 30)
        backoff_s = retry.initial_backoff_s * retry.backoff_multiplier**exponent
        return min(backoff_s, retry.max_backoff_s) * random.uniform(0.8, 1.2)

    def _overload_wait_s(self, retry: RetryPolicy, asked_s: float) -> float:
        """0 unless the server is overloaded: then every question adds to its load."""
        if not self._overload_count:
            return 0.0
        wait_s = max(asked_s, retry.initial_backoff_s) * 2.0 ** min(self._overload_count - 1, 30)
        # Uploads that were refused together do not come back together.
        return min(wait_s, retry.max_overload_backoff_s) * random.uniform(0.8, 1.0)

    def _is_of_a_live_server(self, error: CallError) -> bool:
        """An overloaded server says when to come back; a call that took too long was one of many."""
        if isinstance(error, DeadlineExceededError):
            return self._has_tried
        return isinstance(error, ResourceExhaustedError)

    def _is_hopeless(self, retry: RetryPolicy) -> bool:
        if self.left_s() == 0:
            return True
        if not self._reached:
            return self._failure_count >= retry.max_attempts
        since = self._clock() if self._failing_since is None else self._failing_since
        return self._clock() - since > retry.upload_patience_s
