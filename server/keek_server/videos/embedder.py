"""From frames to clip vectors, whatever dies on the way."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keek_server import metrics
from keek_server.errors import BadMediaError, KeekError, NotFoundError, OverloadedError, UnavailableError
from keek_server.releases.live import LiveRelease
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.clip import Clip, Frames
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.decoding.types import FrameShape
from keek_server.videos.embedding_queue import LEASE_AGAIN_S, LEASE_S, EmbeddingQueue, Left, Queued
from keek_server.videos.media import MediaStore
from keek_server.videos.video import ClipVector

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
_SPARE_S = 5.0
"""What is left of a lease when work on it is given up."""
_MOST_FAILURES = 5
_PAUSE_S = 10.0
"""Before a video that could not be decoded is tried again."""


class _NotNowError(KeekError):
    """What every video needs is away, or has too much to do: not the fault of a file, however often."""


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
        self._queue = EmbeddingQueue(database)
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

    def submit(self, queued: Queued, frames: Frames) -> None:
        """Embeds a video that was just queued, in the background."""
        task = asyncio.create_task(self._embed_new(queued, frames))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def queue_if_unread(self, video_id: str) -> None:
        """Queues a video that was stored without frames, if there is a CLIP by now.

        Raises:
            UnavailableError: When the database is down.
        """
        if (clip := self._clip()) is not None:
            await self._queue.add_unread(clip.record.clip_model, video_id)

    async def aclose(self) -> None:
        """Ends what is under way; whoever finds the leases run out goes on with it."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def run(self) -> None:
        """Works off what others left, until cancelled."""
        while True:
            worked = False
            try:
                if self._live.current is not None:
                    worked = await self._work(self._live.current.clip)
            except KeekError as error:
                logger.warning("videos wait for CLIP: %s", error)
            if not worked:
                await asyncio.sleep(_LOOK_S)

    async def _work(self, clip: Clip | None) -> bool:
        """Looks at some videos whose lease has run out; False when others have to wait, or there are none."""
        clip_model = clip.record.clip_model if clip else ""
        left = await self._queue.take(clip_model)
        go_on = all(await asyncio.gather(*(self._embed_again(one, clip) for one in left)))
        if clip_model != self._clip_model:
            if clip is not None:
                await self._queue.add_unread(clip_model)
            self._clip_model = clip_model
            return go_on
        return go_on and bool(left)

    async def _embed_new(self, queued: Queued, frames: Frames) -> None:
        try:
            async with asyncio.timeout(LEASE_S - _SPARE_S):
                clip = self._clip()
                if clip is None or clip.record.image_size != frames.shape[-1]:
                    await self._queue.give_back(queued)
                else:
                    await self._embed(queued, frames, clip)
        except (KeekError, TimeoutError) as error:
            logger.warning("video %s waits for CLIP: %s", queued.video_id, error or "too slow")
            await self._give_back(queued)

    async def _embed_again(self, left: Left, clip: Clip | None) -> bool:
        """Ends well whatever happens: one video must not keep the others waiting.

        Returns:
            False when the next video would have to wait, too.
        """
        if clip is None:
            # By its metadata alone; the next CLIP looks at it again.
            await self._finish(left.queued, None)
            return True
        try:
            async with asyncio.timeout(LEASE_AGAIN_S - _SPARE_S):
                frames = await self._decode(left, clip)
                if frames is not None:
                    await self._embed_decoded(left.queued, frames, clip)
        except _NotNowError as error:
            logger.warning("video %s waits for CLIP: %s", left.queued.video_id, error)
            # By the lease, it would come long after what is away is back.
            await self._give_back(left.queued, after_s=_PAUSE_S)
            return False
        except (KeekError, TimeoutError) as error:
            logger.warning("video %s waits for CLIP: %s", left.queued.video_id, error or "too slow")
        except Exception:
            logger.exception("video %s waits for CLIP", left.queued.video_id)
        return True

    async def _decode(self, left: Left, clip: Clip) -> Frames | None:
        """The frames; None when the video does without, or is tried again later."""
        file = self._media.scratch / uuid.uuid4().hex
        try:
            return await self._frames_of(left.original_url, file, clip.record.frame_shape)
        except _NotNowError:
            raise  # Not counted as the file's failure.
        except (BadMediaError, NotFoundError) as error:
            # It was good when it was uploaded. It stays, recommended by its metadata alone.
            logger.error("video %s cannot be looked at again: %s", left.queued.video_id, error)  # noqa: TRY400
            await self._finish(left.queued, None)
            return None
        except Exception:
            await self._failed(left.queued)
            raise
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _frames_of(self, url: str, file: Path, shape: FrameShape) -> Frames:
        try:
            await self._media.fetch(url, file, max_bytes=self._settings.video_max_bytes)
        except UnavailableError as error:
            if not self._media.owns(url):
                raise  # It may be away for good.
            raise _NotNowError(str(error)) from error
        try:
            decoded = await self._decoder.decode_video(file, shape, self._settings.clip_frames)
        except OverloadedError as error:
            raise _NotNowError(str(error)) from error
        return decoded.frames

    async def _failed(self, queued: Queued) -> None:
        """Counts a failure that may be the file's fault, or not."""
        if queued.failures + 1 < _MOST_FAILURES:
            await self._queue.give_back(queued, after_s=_PAUSE_S * 2**queued.failures, failed=True)
            return
        logger.error("video %s could not be decoded %d times", queued.video_id, _MOST_FAILURES)
        await self._finish(queued, None)

    async def _embed(self, queued: Queued, frames: Frames, clip: Clip) -> None:
        if not len(frames):
            await self._finish(queued, None)
            return
        with metrics.timed(metrics.video_stage_seconds, "clip"):
            vector = (await clip.images.vector(frames)).astype("<f2")
        if not np.isfinite(vector).all():
            logger.error("video %s: CLIP gave a vector that is not finite", queued.video_id)
            await self._finish(queued, None)
            return
        await self._finish(queued, ClipVector(clip.record.clip_model, vector.tobytes()))

    async def _embed_decoded(self, queued: Queued, frames: Frames, clip: Clip) -> None:
        try:
            await self._embed(queued, frames, clip)
        except KeekError as error:
            # CLIP is away, or the database.
            raise _NotNowError(str(error)) from error

    async def _finish(self, queued: Queued, vector: ClipVector | None) -> None:
        if await self._queue.finish(queued, vector):
            self.changed()

    async def _give_back(self, queued: Queued, *, after_s: float = 0.0) -> None:
        try:
            await self._queue.give_back(queued, after_s=after_s)
        except KeekError:
            logger.warning("video %s waits until its lease has run out", queued.video_id)

    def _clip(self) -> Clip | None:
        return self._live.current.clip if self._live.current else None
