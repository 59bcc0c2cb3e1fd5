"""How far videos are: what WatchVideo and GetUpload tell."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from keek_server.errors import NotFoundError
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.slots import Slots
from keek_server.videos.uploads import Upload, Uploads
from keek_server.videos.video import VideoState

_LAST = (VideoState.READY, VideoState.REJECTED)


@dataclass(frozen=True, slots=True)
class VideoProgress:
    """One state of a video or its upload."""

    state: VideoState
    received_bytes: int = 0
    size_bytes: int = 0
    reason: str = ""


class VideoWatch:
    """Reads uploads and videos together: an upload becomes a video when it is stored."""

    def __init__(self, uploads: Uploads, catalogue: Catalogue, slots: Slots, *, poll_s: float) -> None:
        self._uploads = uploads
        self._catalogue = catalogue
        self._slots = slots
        self._poll_s = poll_s

    async def upload(self, upload_id: uuid.UUID) -> tuple[Upload, VideoState]:
        """An upload, and the state of it or of the video that it became.

        Raises:
            NotFoundError: When there is no such upload, or its video was deleted.
        """
        upload = await self._uploads.get(upload_id)
        if upload.state is not VideoState.EMBEDDING:
            return upload, upload.state
        return upload, (await self._catalogue.get(upload.video_id)).state

    async def follow(self, video_id: str) -> AsyncGenerator[VideoProgress, None]:
        """Every state of a video from now on, until it is READY or REJECTED.

        Raises:
            NotFoundError: When neither the video nor an upload of it is known.
            OverloadedError: When too many are followed already.
        """
        told = None
        with self._slots.take():
            while told is None or told.state not in _LAST:
                now = await self._progress(video_id)
                if now != told:
                    told = now
                    yield now
                else:
                    await asyncio.sleep(self._poll_s)

    async def _progress(self, video_id: str) -> VideoProgress:
        upload = await self._uploads.latest_of(video_id)
        video = await self._catalogue.find(video_id)
        # Of a video that has a file, another upload can say nothing.
        has_file = video is not None and video.original_url != ""
        if upload is not None and upload.state is not VideoState.EMBEDDING and not has_file:
            return VideoProgress(upload.state, upload.received_bytes, upload.size_bytes, upload.reason)
        if video is None:
            raise NotFoundError(f"no video {video_id!r}, and no upload of it")
        size = upload.size_bytes if upload else 0
        return VideoProgress(video.state, size, size)
