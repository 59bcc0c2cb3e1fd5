"""A file becomes a video: checked, stored, durable, and on its way to CLIP."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import AlreadyExistsError
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, embedding_queue, videos
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import advance_clock
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.embedder import LEASE_US, Embedder
from keek_server.videos.media import MediaStore
from keek_server.videos.video import Video, VideoState

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
        self._frames = settings.clip_frames

    async def take(
        self, video: Video, file: Path, key: uuid.UUID, finish: Finish, *, original_url: str = ""
    ) -> Video:
        """Stores a video; it is durable when this returns, and recommendable a moment later.

        Args:
            video: Its metadata, as the caller gave it.
            file: Its content.
            key: Names its files in the store.
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
        with metrics.timed(metrics.video_stage_seconds, "store"):
            if not original_url:
                original_url = await self._media.put(f"originals/{key.hex}.{decoded.container}", file)
            poster_url = await self._media.put(f"posters/{key.hex}.jpg", decoded.poster_jpeg)
        has_frames = len(decoded.frames) > 0
        stored = replace(
            video,
            duration_s=decoded.duration_s,
            width=decoded.width,
            height=decoded.height,
            original_url=original_url,
            poster_url=poster_url,
            state=VideoState.EMBEDDING if has_frames else VideoState.READY,
        )
        if await self._store(stored, finish) and has_frames:
            self._embedder.submit(video.video_id, decoded.frames)
        self._catalogue.forget([video.video_id])
        self._embedder.changed()
        return await self._catalogue.get(video.video_id)

    async def _store(self, video: Video, finish: Finish) -> bool:
        """Whether this call made it; another one with the same request may have been faster."""
        row = video.as_row()
        insert = self._database.insert(videos)
        changed = {name: insert.excluded[name] for name in (*row, "change_seq") if name != "video_id"}
        upsert = insert.on_conflict_do_update(index_elements=[videos.c.video_id], set_=changed)

        def work(connection: sa.Connection) -> bool:
            seq = advance_clock(connection, 1)
            if not finish(connection):
                return False
            raise_if_it_has_a_file(connection, video.video_id)
            connection.execute(upsert, [{**row, "change_seq": seq}])
            for table in (clip_vectors, embedding_queue):
                connection.execute(table.delete().where(table.c.video_id == video.video_id))
            if video.state is VideoState.EMBEDDING:
                lease = {"video_id": video.video_id, "lease_until_us": now_us() + LEASE_US}
                connection.execute(embedding_queue.insert().values(lease))
            return True

        return await self._database.transact(work)


def raise_if_it_has_a_file(connection: sa.Connection, video_id: str) -> None:
    """
    Raises:
        AlreadyExistsError: When a file of this video is stored.
    """
    query = sa.select(videos.c.original_url).where(videos.c.video_id == video_id)
    if connection.execute(query).scalar():
        raise AlreadyExistsError(f"video {video_id!r} has a file already")
