"""What callers do with videos, beside uploading them."""

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from keek_server.errors import AlreadyExistsError, KeekError
from keek_server.releases.follower import CatalogueFollower
from keek_server.settings import Settings
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.cleaner import Cleaner
from keek_server.videos.ingest import Ingest
from keek_server.videos.media import MediaStore
from keek_server.videos.requests import is_repeated
from keek_server.videos.slots import Slots
from keek_server.videos.video import ClipVector, Video

_CREATE = "CreateVideo"


class Library:
    """Changes the catalogue, and through it the stored files and the live indexes."""

    def __init__(
        self,
        catalogue: Catalogue,
        media: MediaStore,
        ingest: Ingest,
        follower: CatalogueFollower,
        cleaner: Cleaner,
        slots: Slots,
        settings: Settings,
    ) -> None:
        self._catalogue = catalogue
        self._media = media
        self._ingest = ingest
        self._follower = follower
        self._cleaner = cleaner
        self._slots = slots
        self._max_bytes = settings.video_max_bytes
        self._applying: set[asyncio.Task[None]] = set()

    async def add(self, videos: Sequence[Video], vectors: Mapping[str, ClipVector]) -> int:
        """See `Catalogue.put`."""
        created = await self._catalogue.put(videos, vectors)
        self._follower.notify()
        return created

    async def create(self, video: Video, source_url: str, request_id: str) -> Video:
        """A video whose file stays where it lies; a repeated request gives it as it is.

        Raises:
            InvalidArgumentError: When the source lies under no allowed prefix.
            NotFoundError: When there is no file.
            BadMediaError: When it is no video that can be served.
            AlreadyExistsError: When the video has a file.
            OverloadedError: When too many videos come in at the same time.
        """

        async def is_done() -> bool:
            return await self._catalogue.was_done(request_id, _CREATE, video.video_id)

        with self._slots.take():
            source = await self._media.check_source(source_url)
            if await is_done():
                return await self._catalogue.get(video.video_id)
            try:
                await self._catalogue.check_free(video.video_id)
            except AlreadyExistsError:
                # The file may be that of another call of this request, which was not through before.
                if not await is_done():
                    raise
                return await self._catalogue.get(video.video_id)
            return await self._create(video, source, request_id)

    async def update(self, video_id: str, changes: Mapping[str, Any], request_id: str) -> Video:
        """See `Catalogue.update`."""
        updated = await self._catalogue.update(video_id, changes, request_id)
        self._follower.notify()
        return updated

    async def delete(self, video_id: str, request_id: str) -> None:
        """Deletes a video: on this server, no feed that begins after this shows it.

        Raises:
            NotFoundError: When the video is not known.
        """
        await self._catalogue.delete(video_id, request_id)
        self._cleaner.notify()
        # It is deleted, whoever still waits for the answer.
        task = asyncio.create_task(self._apply())
        self._applying.add(task)
        task.add_done_callback(self._applying.discard)
        await asyncio.shield(task)

    async def aclose(self) -> None:
        """Waits until deletions hold on this server."""
        await asyncio.gather(*self._applying)

    async def _create(self, video: Video, source: str, request_id: str) -> Video:
        key = uuid.uuid4()
        file = self._media.scratch / key.hex

        def finish(connection: sa.Connection) -> bool:
            return not is_repeated(connection, request_id, _CREATE, video.video_id)

        try:
            await self._media.fetch(source, file, max_bytes=self._max_bytes)
            return await self._ingest.take(video, file, key, finish, original_url=source)
        finally:
            await self._media.discard(file)

    async def _apply(self) -> None:
        try:
            await self._follower.apply()
        except KeekError:
            # That it does not hold here yet is no reason to say that it was not done.
            self._follower.notify()
