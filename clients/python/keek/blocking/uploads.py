"""Calls of the VideoService on files: uploads that go on where they were cut off."""

import time
from collections.abc import Generator

from keek.blocking.connection import BlockingConnection
from keek.errors import CallError, NotFoundError
from keek.sources import FileLike, Source
from keek.uploads import Progress, Upload
from keek.v1.video_service_pb2 import (
    GetUploadRequest,
    GetUploadResponse,
    Video,
    WatchVideoRequest,
    WatchVideoResponse,
)


class UploadCalls(BlockingConnection):
    """Feature of `keek.Client`."""

    def upload_video(
        self,
        file: FileLike,
        video: Video | None = None,
        *,
        upload_id: str | None = None,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> Video:
        """Uploads a file; gives the video when it is decoded, stored and durable.

        A call that is cut off is made again, from what has arrived, until `timeout_s`; when it
        fails before a server was reached, or when nothing more arrives, `keek.RetryPolicy` says
        for how long. The file is read in chunks, and must not change meanwhile.

        Args:
            file: A path, or an open binary file that can seek, which is read from its start.
            video: Its metadata; a `video_id` is made when it has none.
            upload_id: A UUID, to go on with an upload of this file that failed before; made anew
                when None.
            progress: Called with the bytes sent and the size, from a thread of gRPC's; the bytes
                sent become fewer when less has arrived. What it raises ends the upload.
            timeout_s: For the whole upload; None means `Timeouts.upload_video_s`.

        Raises:
            InvalidArgumentError: It is no video that can be served; `reason` says why, as
                `TRUNCATED`.
            FileChangedError: The file changed while it was read.
            OSError: The file cannot be read.
        """
        with Source(file) as source:
            upload = Upload(
                source,
                video,
                upload_id=upload_id,
                progress=progress,
                retry=self._retry,
                timeout_s=self._timeouts.upload_video_s if timeout_s is None else timeout_s,
            )
            while True:
                try:
                    video_now = self._try_upload(upload)
                except CallError as error:
                    if self._closed:
                        raise
                    time.sleep(upload.wait_s(error))
                else:
                    upload.finish()
                    return video_now

    def _try_upload(self, upload: Upload) -> Video:
        """One call, from what has arrived."""
        if upload.must_ask:
            upload.received(self._received_bytes(upload))
        attempt = upload.attempt()
        timeout_s = min(upload.left_s(), self._timeouts.upload_try_s)
        try:
            response = self._call(self._stubs.videos.UploadVideo, attempt.requests(), timeout_s, timeout_s)
        finally:
            upload.ended(attempt)
        return response.video

    def _received_bytes(self, upload: Upload) -> int:
        timeout_s = min(upload.left_s(), self._timeouts.get_upload_s)
        try:
            found = self.get_upload(upload.upload_id, timeout_s=timeout_s)
        except NotFoundError:
            return 0
        return found.received_bytes

    def get_upload(self, upload_id: str, *, timeout_s: float | None = None) -> GetUploadResponse:
        """How far an upload came.

        Raises:
            NotFoundError: Nothing of it has arrived.
        """
        request = GetUploadRequest(upload_id=upload_id)
        return self._call(self._stubs.videos.GetUpload, request, timeout_s, self._timeouts.get_upload_s)

    def watch_video(
        self, video_id: str, *, timeout_s: float | None = None
    ) -> Generator[WatchVideoResponse, None]:
        """The states of a video or its upload, at once and at every change, until READY or REJECTED.

        One call that starts with the first `next()`. It raises `DeadlineExceededError` after
        `timeout_s`, an hour by default; then watch again. To stop
        early, call the generator's `close()`, or drop it.

        Raises:
            NotFoundError: Neither is known.
        """
        request = WatchVideoRequest(video_id=video_id)
        return self._stream(self._stubs.videos.WatchVideo, request, timeout_s, self._timeouts.watch_video_s)
