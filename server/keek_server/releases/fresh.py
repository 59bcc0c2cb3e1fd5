"""What changed in the catalogue since a release was built, brought into its index."""

import asyncio
import logging
from collections.abc import Sequence
from itertools import compress, islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from keek_server import metrics
from keek_server.releases.columns import video_columns
from keek_server.releases.release import CLIP, VIDEO_COLUMNS, Release
from keek_server.retrieval.fresh import VECTORS, Column, Columns
from keek_server.retrieval.index import FaissIndex
from keek_server.retrieval.live import LiveIndex
from keek_server.towers.contract import CLIP_DIMENSION, VIDEO_TOWER, TowerContract
from keek_server.towers.features import Float16Array, Float32Array, Tensors, video_features
from keek_server.videos.changes import Change, ChangeFeed
from keek_server.videos.video import VideoState

logger = logging.getLogger(__name__)

FRESH_COLUMNS = {**VIDEO_COLUMNS, CLIP: Column(np.float16, (CLIP_DIMENSION,))}

_PAGE = 1000
_BATCH = 256
"""Videos a call of the video tower: feeds wait behind it."""
_DEADLINE_S = 5.0


class Towers(Protocol):
    """Answers for towers, as `TowerClient` does."""

    async def vectors(
        self, tower: TowerContract, version: int, features: Tensors, *, deadline_s: float
    ) -> Float32Array:
        """See `TowerClient.vectors`."""
        ...


class FreshVideos:
    """Keeps the index of one release up to date with the catalogue."""

    def __init__(self, release: Release, feed: ChangeFeed, towers: Towers, *, fresh_limit: int) -> None:
        self.index = LiveIndex(
            {VECTORS: release.index, CLIP: release.clip_index or FaissIndex.empty(CLIP_DIMENSION)},
            release.corpus.ids,
            release.corpus.columns,
            fresh_columns=FRESH_COLUMNS,
            fresh_limit=fresh_limit,
            postings=release.corpus.postings,
        )
        self.deleted: set[str] = set()
        """Videos of the release, or newer, that must not be shown any more."""
        self._release = release
        self._feed = feed
        self._towers = towers
        self._fresh_limit = fresh_limit
        self._seq = release.manifest.catalogue_seq
        self._waiting: dict[str, Change] = {}
        self._reading, self._embedding = asyncio.Lock(), asyncio.Lock()

    def is_behind(self, last_seq: int) -> bool:
        """Whether changes up to `last_seq` are missing."""
        return self._seq < last_seq or bool(self._waiting)

    async def apply(self) -> None:
        """Reads all changes up to now. Deletions hold when this returns; new videos wait for `catch_up`.

        Raises:
            UnavailableError: When the database fails.
        """
        async with self._reading:
            while changes := await self._feed.read(self._seq, _PAGE):
                self._take(changes)
                self._seq = changes[-1].seq
                if len(changes) < _PAGE:
                    return

    async def catch_up(self) -> None:
        """Brings all changes up to now into the index.

        Raises:
            UnavailableError: When the database or Triton fails; what is missing comes with the next call.
        """
        async with self._embedding:
            await self.apply()
            while batch := list(islice(self._waiting.values(), _BATCH)):
                await self._embed(batch)
                # A deletion must not wait until all are embedded.
                await self.apply()

    def _take(self, changes: Sequence[Change]) -> None:
        gone = []
        for change in changes:
            # Put anew, so that the oldest stands first.
            self._waiting.pop(change.video_id, None)
            if change.state is VideoState.DELETED:
                self.deleted.add(change.video_id)
                gone.append(change.video_id)
                continue
            self.deleted.discard(change.video_id)
            if change.state is VideoState.READY:
                self._waiting[change.video_id] = change
        if gone:
            self.index.remove(gone)
        if (surplus := len(self._waiting) - self._fresh_limit) > 0:
            logger.warning("more than %d videos are newer than the release's index", self._fresh_limit)
            for video_id in list(islice(self._waiting, surplus)):
                del self._waiting[video_id]

    async def _embed(self, batch: Sequence[Change]) -> None:
        """Gives videos their vectors, and puts them into the index."""
        tower = self._release.manifest.video_tower
        with metrics.timed(metrics.video_stage_seconds, "fresh"):
            vectors = await self._towers.vectors(
                VIDEO_TOWER, tower.version, self._features(batch), deadline_s=_DEADLINE_S
            )
        # Those that have changed again meanwhile wait for their next turn.
        current = [self._waiting.get(change.video_id) is change for change in batch]
        for change in compress(batch, current):
            del self._waiting[change.video_id]
        usable = np.asarray(np.isfinite(vectors).all(axis=1))
        if not usable.all():
            logger.error("video_tower version %d gave vectors that are not finite", tower.version)
        kept = usable & np.array(current)
        batch, vectors = list(compress(batch, kept)), vectors[kept]
        self.index.put([change.video_id for change in batch], self._columns(batch, vectors))

    def _features(self, batch: Sequence[Change]) -> dict[str, npt.NDArray[np.generic]]:
        return video_features(
            [change.video_id for change in batch],
            [change.owner_id for change in batch],
            [change.tags for change in batch],
            [change.duration_s for change in batch],
            np.nan_to_num(self._clip_vectors(batch)),
        )

    def _columns(self, batch: Sequence[Change], vectors: npt.NDArray[np.float32]) -> Columns:
        known = video_columns(
            vectors,
            owner_ids=[change.owner_id for change in batch],
            tags=[change.tags for change in batch],
            durations_s=[change.duration_s for change in batch],
            create_times_us=[change.create_time_us for change in batch],
            languages=[change.language for change in batch],
            regions=[change.region for change in batch],
        )
        return {**known, CLIP: self._clip_vectors(batch)}

    def _clip_vectors(self, batch: Sequence[Change]) -> Float16Array:
        """float16 [n, CLIP_DIMENSION]; NaN where a video has none of this CLIP."""
        vectors = np.full((len(batch), CLIP_DIMENSION), np.nan, np.float16)
        for row, change in enumerate(batch):
            if change.clip is not None and self._release.reads(change.clip.clip_model):
                vectors[row] = np.frombuffer(change.clip.content, "<f2")
        return vectors
