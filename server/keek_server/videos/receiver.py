"""Receives uploads: in parts that survive whatever is cut off."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import sqlalchemy as sa

from keek_server.errors import (
    AlreadyExistsError,
    BadMediaError,
    InvalidArgumentError,
    KeekError,
    MediaProblem,
    NotFoundError,
    OutOfRangeError,
)
from keek_server.settings import Settings
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.ingest import Ingest
from keek_server.videos.media import MediaStore
from keek_server.videos.slots import Slots
from keek_server.videos.uploads import Upload, Uploads, finish_upload
from keek_server.videos.video import Video, VideoState

logger = logging.getLogger(__name__)

_PART_BYTES = 4 * 2**20


class Receiver:
    """Takes the bytes of uploads, and hands what is complete to `Ingest`."""

    def __init__(
        self,
        uploads: Uploads,
        catalogue: Catalogue,
        media: MediaStore,
        ingest: Ingest,
        slots: Slots,
        settings: Settings,
    ) -> None:
        self._uploads = uploads
        self._catalogue = catalogue
        self._media = media
        self._ingest = ingest
        self._slots = slots
        self._settings = settings
        self._saving: set[asyncio.Task[None]] = set()

    async def receive(
        self, upload_id: uuid.UUID, video: Video, size: int, offset: int, chunks: AsyncIterator[bytes]
    ) -> Video:
        """One call of an upload.

        Args:
            upload_id: Of the upload, whatever number of calls it takes.
            video: The metadata.
            size: Of the whole file, bytes.
            offset: Where the first chunk belongs.
            chunks: The bytes from there on.

        Returns:
            The video, durable.

        Raises:
            BadMediaError: When the file is no video that can be served.
            OutOfRangeError: When bytes before `offset` are missing, or all: it was forgotten meanwhile.
            InvalidArgumentError: When the bytes are not as many as `size` says.
            AlreadyExistsError: When the video has another file.
            UnavailableError: When a part is down; what was received is kept.
            OverloadedError: When too many videos come in at the same time.
        """
        with self._slots.take():
            if size > (most := self._settings.video_max_bytes):
                raise BadMediaError(MediaProblem.TOO_LARGE, f"is larger than {most:,} bytes")
            upload = await self._uploads.begin(upload_id, video.video_id, size)
            upload.raise_if_rejected()
            if upload.state is VideoState.EMBEDDING:
                return await self._catalogue.get(video.video_id)
            try:
                await self._catalogue.check_free(video.video_id)
            except AlreadyExistsError:
                # The file may be that of another call of this upload, which was not through before.
                if (await self._uploads.get(upload_id)).state is not VideoState.EMBEDDING:
                    raise
                return await self._catalogue.get(video.video_id)
            if offset > upload.received_bytes:
                raise OutOfRangeError(f"bytes from {upload.received_bytes} on are missing")
            return await self._receive(upload, video, offset, chunks)

    async def aclose(self) -> None:
        """Waits until what was received is saved."""
        await asyncio.gather(*self._saving)

    async def _receive(
        self, upload: Upload, video: Video, offset: int, chunks: AsyncIterator[bytes]
    ) -> Video:
        spool = Spool(self._media, self._uploads, upload, offset)
        try:
            if offset:
                await self._gather(upload, spool.file, offset)
            async for chunk in chunks:
                await spool.add(chunk)
            await spool.complete()
            stored = await self._take(upload, video, spool.file)
        except (BadMediaError, AlreadyExistsError):
            spool.discard()
            raise
        finally:
            # A call that is cancelled may not wait: what it received is saved behind its back.
            self._save(spool)
        return stored

    async def _gather(self, upload: Upload, file: Path, size: int) -> None:
        """Puts the bytes of other calls together."""
        reached = await self._media.append_parts(upload.upload_id, file, size)
        if reached < size:
            await self._uploads.set_back(upload.upload_id, reached)
            raise OutOfRangeError(f"bytes from {reached} on are missing")

    async def _take(self, upload: Upload, video: Video, file: Path) -> Video:
        def finish(connection: sa.Connection) -> bool:
            return finish_upload(connection, upload.upload_id)

        await self._uploads.decoding(upload.upload_id)
        try:
            return await self._ingest.take(video, file, upload.upload_id, finish)
        except BadMediaError as error:
            await self._uploads.reject(upload.upload_id, error)
            if (await self._uploads.get(upload.upload_id)).state is not VideoState.EMBEDDING:
                raise
            # Another call of this upload was faster, and found nothing wrong.
            return await self._catalogue.get(video.video_id)

    def _save(self, spool: "Spool") -> None:
        task = asyncio.create_task(spool.close())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)


class Spool:
    """The bytes of one call: in a local file for the decoder, and in parts in the store for another call."""

    def __init__(self, media: MediaStore, uploads: Uploads, upload: Upload, offset: int) -> None:
        self.file = media.scratch / uuid.uuid4().hex
        self._media = media
        self._uploads = uploads
        self._upload = upload
        self._saved = offset
        """Bytes of the whole file that are in parts."""
        self._spooled = offset
        self._buffer = bytearray()
        self._keep_parts = True

    async def add(self, chunk: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidArgumentError: When they are more than was said.
            UnavailableError: When they cannot be stored.
        """
        if self._saved + len(self._buffer) + len(chunk) > self._upload.size_bytes:
            raise InvalidArgumentError.of("chunk", "the file is larger than header.size_bytes")
        self._buffer += chunk
        if len(self._buffer) >= _PART_BYTES:
            await self._append()
            await self._save_part()

    async def complete(self) -> None:
        """Makes the local file whole.

        Raises:
            InvalidArgumentError: When bytes are missing.
        """
        received = self._saved + len(self._buffer)
        if received != self._upload.size_bytes:
            raise InvalidArgumentError.of(
                "chunk", f"the stream ended after {received} bytes: go on from there"
            )
        await self._append()

    def discard(self) -> None:
        """Says that the bytes are worth nothing."""
        self._keep_parts = False

    async def close(self) -> None:
        """Keeps what another call can go on from, removes the rest."""
        await self._media.discard(self.file)
        try:
            # The call may have been cancelled while the file was looked at.
            await self._uploads.waiting_again(self._upload.upload_id)
            upload = await self._uploads.get(self._upload.upload_id)
            if not self._keep_parts or upload.state is not VideoState.UPLOADING:
                await self._media.drop_parts(self._upload.upload_id)
            elif self._buffer:
                await self._save_part()
        except NotFoundError:
            # It was forgotten meanwhile, and nobody finds by it what came since.
            await self._forget_parts()
        except KeekError as error:
            logger.warning("upload %s: %s", self._upload.upload_id, error)

    async def _forget_parts(self) -> None:
        try:
            await self._media.drop_parts(self._upload.upload_id)
        except KeekError as error:
            logger.warning("parts of upload %s stay: %s", self._upload.upload_id, error)

    async def _append(self) -> None:
        """Appends what the local file lacks."""
        missing = bytes(self._buffer[self._spooled - self._saved :])
        await self._media.append(self.file, missing)
        self._spooled += len(missing)

    async def _save_part(self) -> None:
        end = self._saved + len(self._buffer)
        # What is durable already needs no second part.
        if end > self._upload.received_bytes:
            await self._media.put_part(self._upload.upload_id, self._saved, bytes(self._buffer))
            await self._uploads.received(self._upload.upload_id, end)
        self._saved = end
        self._buffer.clear()
