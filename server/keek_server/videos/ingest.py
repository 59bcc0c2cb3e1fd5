"""A file becomes a video: checked, stored, durable, and on its way to CLIP."""

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from keek_server import metrics
from keek_server.errors import KeekError, UnavailableError
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, embedding_queue, videos
from keek_server.videos.catalogue import Catalogue, raise_if_it_has_a_file
from keek_server.videos.changes import advance_clock
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.embedder import Embedder
from keek_server.videos.embedding_queue import Queued
from keek_server.videos.media import ORIGINALS, POSTERS, MediaStore
from keek_server.videos.removals import Removals, remove_later
from keek_server.videos.video import Video, VideoState

logger = logging.getLogger(__name__)

Finish = Callable[[sa.Connection], bool]
"""Marks the request as carried out, in the transaction that stores the video; False when it was before."""


class Ingest:
    """Takes files that lie in a local folder."""

    def __init__(
        self,
        database: Database,
        catalogue: Catalogue,
        media: MediaStore,
        decoder: Decoder,
        embedder: Embedder,
        settings: Settings,
    ) -> None:
        self._database = database
        self._catalogue = catalogue
        self._media = media
        self._decoder = decoder
        self._embedder = embedder
        self._removals = Removals(database)
        self._frames = settings.clip_frames

    async def take(
        self, video: Video, file: Path, key: uuid.UUID, finish: Finish, *, original_url: str = ""
    ) -> Video:
        """Stores a video; it is durable when this returns, and recommendable a moment later.

        Args:
            video: Its metadata, as the caller gave it.
            file: Its content.
            key: Names the folder of its files in the store.
            finish: See `Finish`.
            original_url: Where the file lies for good; it is copied into the store when empty.

        Returns:
            The video as it is stored.

        Raises:
            BadMediaError: When the file is no video that can be served.
            AlreadyExistsError: When the video has another file.
            UnavailableError: When a part is down; nothing is acknowledged.
        """
        with metrics.timed(metrics.video_stage_seconds, "decode"):
            decoded = await self._decoder.decode_video(file, self._embedder.frame_shape(), self._frames)
        # Files of this call alone: what another call of the same request stored is never touched.
        name = f"{key.hex}/{uuid.uuid4().hex}"
        files: dict[str, Path | bytes] = {f"{POSTERS}/{name}.jpg": decoded.poster_jpeg}
        if not original_url:
            files[f"{ORIGINALS}/{name}.{decoded.container}"] = file
        poster_url, *originals = urls = list(map(self._media.url, files))
        await self._put(files)
        has_frames = len(decoded.frames) > 0
        stored = replace(
            video,
            duration_s=decoded.duration_s,
            width=decoded.width,
            height=decoded.height,
            original_url=original_url or originals[0],
            poster_url=poster_url,
            state=VideoState.EMBEDDING if has_frames else VideoState.READY,
        )
        queued = await self._store(stored, finish, urls)
        if queued is not None:
            self._embedder.submit(queued, decoded.frames)
        elif not has_frames:
            # A release with CLIP may have become active since.
            await self._embedder.queue_if_unread(video.video_id)
        self._catalogue.forget([video.video_id])
        self._embedder.changed()
        return await self._catalogue.get(video.video_id)

    async def _put(self, files: Mapping[str, Path | bytes]) -> None:
        try:
            with metrics.timed(metrics.video_stage_seconds, "store"):
                for name, content in files.items():
                    await self._media.put(name, content)
        except KeekError:
            await self._give_up(map(self._media.url, files))
            raise

    async def _store(self, video: Video, finish: Finish, urls: Sequence[str]) -> Queued | None:
        """What CLIP has to see; None without frames, or when another call of the request was faster."""
        try:
            return await self._commit(video, finish, urls)
        except UnavailableError:
            raise  # It may be committed all the same.
        except KeekError:
            await self._give_up(urls)
            raise

    async def _give_up(self, urls: Iterable[str]) -> None:
        """Has files removed that no video will name."""
        try:
            await self._removals.add(urls)
        except UnavailableError:
            logger.warning("files of an upload stay until it is forgotten")

    async def _commit(self, video: Video, finish: Finish, urls: Sequence[str]) -> Queued | None:
        row = video.as_row()
        upsert = self._database.upsert(videos)

        def work(connection: sa.Connection) -> Queued | None:
            seq = advance_clock(connection, 1)
            if not finish(connection):
                remove_later(connection, urls)
                return None
            raise_if_it_has_a_file(connection, video.video_id)
            connection.execute(upsert, [{**row, "change_seq": seq}])
            for table in (clip_vectors, embedding_queue):
                connection.execute(table.delete().where(table.c.video_id == video.video_id))
            if video.state is not VideoState.EMBEDDING:
                return None
            queued = Queued.new(video.video_id, seq)
            connection.execute(embedding_queue.insert().values(queued.as_row()))
            return queued

        return await self._database.transact(work)
