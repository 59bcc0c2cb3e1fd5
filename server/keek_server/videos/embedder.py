"""Videos that CLIP has yet to see: from frames to clip vectors, whatever dies on the way."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import BadMediaError, KeekError, NotFoundError, UnavailableError
from keek_server.releases.live import LiveRelease
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, embedding_queue, videos
from keek_server.towers.clip import Clip, Frames
from keek_server.videos.changes import advance_clock
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.decoding.types import FrameShape
from keek_server.videos.media import MediaStore
from keek_server.videos.video import ClipVector, VideoState

logger = logging.getLogger(__name__)

LEASE_US = 20_000_000
"""How long the server that takes an upload has its video to itself: CLIP has seen it by then."""
_LEASE_AGAIN_US = 60_000_000
"""The same for a video that has to be decoded again."""

_LOOK_S = 2.0
_AT_ONCE = 4
_TRIES = 3
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Taken:
    """A video of the queue that this server has for itself."""

    video_id: str
    original_url: str


class Embedder:
    """Works off the queue in SQL.

    The server that takes an upload has its frames in memory and embeds them at once. When that fails, or the
    server dies, whichever server finds the lease run out decodes the stored file again.
    """

    def __init__(
        self,
        database: Database,
        live: LiveRelease,
        media: MediaStore,
        decoder: Decoder,
        changed: Callable[[], None],
        settings: Settings,
    ) -> None:
        """
        Args:
            database: Holds the queue.
            live: Whose CLIP is asked.
            media: Where the originals are.
            decoder: For those that are looked at again.
            changed: Called when the catalogue changed.
            settings: Of the server.
        """
        self._database = database
        self._live = live
        self._media = media
        self._decoder = decoder
        self.changed = changed
        self._settings = settings
        self._running: set[asyncio.Task[None]] = set()
        self._clip_model = ""

    def frame_shape(self) -> FrameShape | None:
        """The frames that CLIP wants; None while no release has one."""
        clip = self._clip()
        return clip.record.frame_shape if clip else None

    def submit(self, video_id: str, frames: Frames) -> None:
        """Embeds a video that was just queued, in the background."""
        task = asyncio.create_task(self._embed_new(video_id, frames))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def aclose(self) -> None:
        """Waits for what is under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def run(self) -> None:
        """Works off what others left, until cancelled."""
        while True:
            worked = False
            try:
                if (clip := self._clip()) is not None:
                    await self._queue_unread(clip)
                    worked = await self._work(clip)
                elif self._live.current is not None:
                    await self._go_without()
            except KeekError as error:
                logger.warning("videos wait for CLIP: %s", error)
            if not worked:
                await asyncio.sleep(_LOOK_S)

    async def _work(self, clip: Clip) -> bool:
        """Embeds some videos whose lease has run out; False when there are none."""
        taken = await self._database.transact(_take)
        await asyncio.gather(*(self._embed_again(video, clip) for video in taken))
        return bool(taken)

    async def _go_without(self) -> None:
        """A release without CLIP recommends videos by their metadata; the next CLIP looks at them again."""
        self._clip_model = ""
        for video in await self._database.transact(_take):
            await self._finish(video.video_id, None)

    async def _embed_new(self, video_id: str, frames: Frames) -> None:
        for attempt in range(_TRIES):
            clip = self._clip()
            try:
                if clip is None or clip.record.frame_shape.size != frames.shape[-1]:
                    break
                await self._embed(video_id, frames, clip)
            except KeekError as error:
                logger.warning("video %s waits for CLIP: %s", video_id, error)
                await asyncio.sleep(_PAUSE_S * 2**attempt)
            else:
                return
        await self._release(video_id)

    async def _embed_again(self, video: _Taken, clip: Clip) -> None:
        file = self._media.scratch / uuid.uuid4().hex
        try:
            await self._media.fetch(video.original_url, file, max_bytes=self._settings.video_max_bytes)
            decoded = await self._decoder.decode_video(
                file, clip.record.frame_shape, self._settings.clip_frames
            )
            await self._embed(video.video_id, decoded.frames, clip)
        except (BadMediaError, NotFoundError):
            # It was good when it was uploaded. It stays, recommended by its metadata alone.
            logger.exception("video %s cannot be looked at again", video.video_id)
            await self._finish(video.video_id, None)
        except UnavailableError as error:
            logger.warning("video %s waits for CLIP: %s", video.video_id, error)
        finally:
            file.unlink(missing_ok=True)

    async def _embed(self, video_id: str, frames: Frames, clip: Clip) -> None:
        with metrics.timed(metrics.video_stage_seconds, "clip"):
            vector = (await clip.images.vector(frames)).astype("<f2")
        if not np.isfinite(vector).all():
            logger.error("video %s: CLIP gave a vector that is not finite", video_id)
            await self._finish(video_id, None)
            return
        await self._finish(video_id, ClipVector(clip.record.clip_model, vector.tobytes()))

    async def _finish(self, video_id: str, vector: ClipVector | None) -> None:
        """Makes the video READY, in one transaction with its vector."""
        insert = self._database.insert(clip_vectors)
        given = {name: insert.excluded[name] for name in ("clip_model", "vector")}
        upsert = insert.on_conflict_do_update(index_elements=[clip_vectors.c.video_id], set_=given)
        done = embedding_queue.delete().where(embedding_queue.c.video_id == video_id)

        def work(connection: sa.Connection) -> None:
            seq = advance_clock(connection, 1)
            if not connection.execute(done).rowcount:
                return  # deleted meanwhile, or done by another server
            if vector is not None:
                row = {"video_id": video_id, "clip_model": vector.clip_model, "vector": vector.content}
                connection.execute(upsert, [row])
            ready = {"state": VideoState.READY, "change_seq": seq}
            connection.execute(videos.update().where(videos.c.video_id == video_id).values(ready))

        await self._database.transact(work)
        self.changed()

    async def _release(self, video_id: str) -> None:
        """Leaves a video to whoever looks first."""
        change = embedding_queue.update().where(embedding_queue.c.video_id == video_id)

        def work(connection: sa.Connection) -> None:
            connection.execute(change.values(lease_until_us=0))

        try:
            await self._database.transact(work)
        except UnavailableError:
            logger.warning("video %s waits until its lease has run out", video_id)

    async def _queue_unread(self, clip: Clip) -> None:
        """Queues the videos with a file whose vectors are of another CLIP, when the CLIP has changed."""
        clip_model = clip.record.clip_model
        if clip_model == self._clip_model:
            return
        unread = (
            sa.select(videos.c.video_id, sa.literal(0))
            .select_from(videos.outerjoin(clip_vectors, clip_vectors.c.video_id == videos.c.video_id))
            .where(
                videos.c.original_url != "",
                videos.c.state == VideoState.READY,
                sa.or_(
                    clip_vectors.c.clip_model.is_(None), clip_vectors.c.clip_model.not_in(("", clip_model))
                ),
            )
        )
        insert = self._database.insert(embedding_queue).from_select(["video_id", "lease_until_us"], unread)

        def work(connection: sa.Connection) -> None:
            connection.execute(insert.on_conflict_do_nothing())

        await self._database.transact(work)
        self._clip_model = clip_model

    def _clip(self) -> Clip | None:
        return self._live.current.clip if self._live.current else None


def _take(connection: sa.Connection) -> list[_Taken]:
    """Some videos of the queue whose lease has run out, with a new lease."""
    now = now_us()
    free = (
        sa.select(embedding_queue.c.video_id, videos.c.original_url)
        .join(videos, videos.c.video_id == embedding_queue.c.video_id)
        .where(embedding_queue.c.lease_until_us < now)
        .order_by(embedding_queue.c.lease_until_us)
        .limit(_AT_ONCE)
        .with_for_update(of=embedding_queue, skip_locked=True)
    )
    taken = [_Taken(*row) for row in connection.execute(free)]
    ids = [video.video_id for video in taken]
    lease = embedding_queue.update().where(embedding_queue.c.video_id.in_(ids))
    if ids:
        connection.execute(lease.values(lease_until_us=now + _LEASE_AGAIN_US))
    return taken
