"""From a release's folder to something that answers: mapped, checked against Triton, warmed up."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keek_server.errors import KeekError, SetupError
from keek_server.releases.fresh import FreshVideos
from keek_server.releases.ranking import RankedVideos, ReleaseRanker
from keek_server.releases.release import VIDEO_COLUMNS, Audience, Release
from keek_server.retrieval.found import FoundVideos
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.gpu import Gpu, GpuIndex
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.milvus import MilvusIndex
from keek_server.retrieval.milvus_store import Milvus
from keek_server.retrieval.searcher import SIDE_BATCH, Searcher
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient
from keek_server.towers.clip import Clip
from keek_server.towers.contract import (
    DIMENSION,
    RANKER,
    RANKING_FEATURES,
    USER_TOWER,
    VIDEO_TOWER,
    TowerContract,
)
from keek_server.towers.features import Float32Array, Tensors, user_features, video_features
from keek_server.towers.ranking import RankedPage, Ranker, ranker_batch
from keek_server.towers.users import UserVectors
from keek_server.videos.changes import ChangeFeed

logger = logging.getLogger(__name__)

_WARM_UP_DEADLINE_S = 10.0
_PROBE_DEADLINE_S = 1.0
_PAGE = 30
"""Candidates of the page that a ranker is tried with, as of ten slots."""
_USERS_KEPT = 20_000
"""Users whose vectors and found videos a release keeps: 12 MiB and about 40 MiB."""


@dataclass(frozen=True, slots=True)
class ServingRelease:
    """A release with what answers for it: a request that captured one uses nothing else."""

    release: Release
    users: UserVectors
    found: FoundVideos
    fresh: FreshVideos
    """The videos: the release's own and those that came since."""
    searcher: Searcher
    """Over `fresh.index`, for feeds."""
    side_searcher: Searcher
    """Over the same, for what may take longer: feeds do not wait behind it."""
    audience: LiveIndex
    """The users that were active when the release was built, and those that are since."""
    audience_searcher: Searcher
    clip: Clip | None
    """None in a release without CLIP."""
    ranker: ReleaseRanker | None = None
    """None in a release without one."""

    def retire(self) -> None:
        """It is asked by none but those who captured it before, and its models may be unloaded."""
        self.users.retire()
        if self.ranker is not None:
            self.ranker.model.retire()


@dataclass(frozen=True, slots=True)
class Executors:
    """The threads that search indexes."""

    feeds: ThreadPoolExecutor
    searches: ThreadPoolExecutor


class ReleaseOpener:
    """Opens releases of this server's release folder."""

    def __init__(
        self,
        feed: ChangeFeed,
        towers: TowerClient,
        executors: Executors,
        settings: Settings,
        *,
        milvus: Milvus | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        self._feed = feed
        self._towers = towers
        self._executors = executors
        self._milvus = milvus
        self._settings = settings
        self._gpu = gpu

    async def open(self, release_id: str) -> ServingRelease:
        """A release whose models Triton has and that has answered once; its fresh part is still empty.

        Raises:
            SetupError: When files are missing, or what Triton answers does not fit.
            UnavailableError, FailedPreconditionError: When Triton does not have a model, and cannot be
                made to load it; the first also when Milvus is needed and does not answer.
        """
        folder = self._settings.release_dir / release_id
        release = await asyncio.to_thread(Release.open, folder, milvus=self._milvus, gpu=self._gpu)
        await self.ensure_loaded(release)
        for tower, entry in release.manifest.models.items():
            await self._towers.check(tower, entry.version)
        await self._warm_up(release)
        return self._prepare(release, await self._open_clip(release))

    async def bring(
        self, release: ServingRelease, serving: Sequence[ServingRelease], held: Sequence[ServingRelease]
    ) -> None:
        """Has the GPU hold a release that is about to serve, if there is one and it fits; see `Gpu.bring`.

        Args:
            release: Serves soon.
            serving: Serve now.
            held: All that are open.
        """
        if self._gpu is not None:
            for index in _on_gpu([release]):
                await self._gpu.bring(index, _on_gpu(serving), _on_gpu(held))

    def arrange(self, held: Sequence[ServingRelease]) -> None:
        """Has the GPU hold as many as fit, the first first, if there is one. Returns at once."""
        if self._gpu is not None:
            self._gpu.arrange(_on_gpu(held))

    async def ensure_loaded(self, release: Release) -> None:
        """Has Triton and Milvus load what they lack of a release: the registry says what serves, whatever
        they remember.

        Raises:
            UnavailableError, FailedPreconditionError: When Triton does not have a model afterwards, the first
                also when Milvus does not have the videos.
        """
        for tower, entry in release.manifest.models.items():
            if not await self._towers.has(tower, entry.version):
                logger.warning(
                    "Triton lacks %s version %d and is asked to load it", tower.model, entry.version
                )
                await self._towers.load(tower, entry.version)
        if isinstance(release.index, MilvusIndex):
            await asyncio.to_thread(release.index.ensure_loaded)

    async def answers(self, release: Release) -> bool:
        """Whether Triton answers with its user tower at present, and Milvus where it is searched there."""
        try:
            vectors = await self._ask(release, USER_TOWER, _one_user(release), deadline_s=_PROBE_DEADLINE_S)
            if isinstance(release.index, MilvusIndex):
                await asyncio.to_thread(release.index.search, vectors, 1)
        except KeekError:
            return False
        return True

    def _prepare(self, release: Release, clip: Clip | None) -> ServingRelease:
        settings = self._settings
        fresh = FreshVideos(release, self._feed, self._towers, fresh_limit=settings.fresh_limit)
        audience = _audience(release, settings.fresh_limit)
        users_kept = _USERS_KEPT if settings.reuse_user_vectors else 0
        return ServingRelease(
            release,
            UserVectors(
                self._towers,
                release.manifest.user_tower.version,
                deadline_s=settings.source_deadline_s,
                kept_limit=users_kept,
            ),
            FoundVideos(users_kept),
            fresh,
            Searcher(fresh.index, self._executors.feeds),
            self._side_searcher(fresh.index),
            audience,
            self._side_searcher(audience),
            clip,
            self._ranker(release, fresh.index),
        )

    def _ranker(self, release: Release, videos: LiveIndex) -> ReleaseRanker | None:
        entry = release.manifest.ranker
        if entry is None:
            return None
        model = Ranker(self._towers, entry.version, deadline_s=self._settings.source_deadline_s)
        return ReleaseRanker(model, RankedVideos.of(release.corpus, videos))

    def _side_searcher(self, index: LiveIndex) -> Searcher:
        return Searcher(
            index,
            self._executors.searches,
            max_batch=SIDE_BATCH,
            max_delay_s=self._settings.search_delay_s,
        )

    async def _open_clip(self, release: Release) -> Clip | None:
        version = release.manifest.clip
        if version is None:
            return None
        clip = await asyncio.to_thread(
            Clip.open,
            self._settings.release_dir / release.id,
            self._towers,
            image_version=version.image.version,
            text_version=version.text.version,
            deadline_s=self._settings.clip_deadline_s,
        )
        await clip.check()
        return clip

    async def _warm_up(self, release: Release) -> None:
        """A whole query against it, and a video: shows that both towers, the ranker and the index answer."""
        await self._ask(release, VIDEO_TOWER, _one_video(), deadline_s=_WARM_UP_DEADLINE_S)
        vectors = await self._ask(release, USER_TOWER, _one_user(release), deadline_s=_WARM_UP_DEADLINE_S)
        await asyncio.to_thread(release.index.search, vectors, 100)
        if release.manifest.ranker is not None:
            await self._ask(release, RANKER, _one_page(), deadline_s=_WARM_UP_DEADLINE_S, width=_PAGE)

    async def _ask(
        self,
        release: Release,
        tower: TowerContract,
        features: Tensors,
        *,
        deadline_s: float,
        width: int = DIMENSION,
    ) -> Float32Array:
        """The answer to one row, float32 [1, width]: a vector, unless the width is another."""
        version = release.manifest.models[tower].version
        vectors = await self._towers.vectors(tower, version, features, deadline_s=deadline_s)
        if vectors.shape != (1, width):
            raise SetupError(f"{tower.model} version {version} gave {vectors.shape}, expected (1, {width})")
        return vectors


def _on_gpu(releases: Iterable[ServingRelease]) -> list[GpuIndex]:
    return [each.release.index for each in releases if isinstance(each.release.index, GpuIndex)]


def _one_user(release: Release) -> Tensors:
    history = np.asarray(release.corpus.vectors[:1])
    kinds, ages_s = np.ones(len(history), np.int32), np.zeros(len(history), np.float32)
    return user_features([""], [history], [kinds], [ages_s])


def _one_video() -> Tensors:
    return video_features([""], [""], [()], [0.0])


def _one_page() -> Tensors:
    vectors = np.zeros((_PAGE, DIMENSION), np.float32)
    features = np.zeros((_PAGE, len(RANKING_FEATURES)), np.float32)
    return ranker_batch([RankedPage(vectors[0], vectors, features)])


def _audience(release: Release, fresh_limit: int) -> LiveIndex:
    built = release.audience or Audience.none()
    columns = {VECTORS: VIDEO_COLUMNS[VECTORS]}
    return LiveIndex({VECTORS: built.index}, built.ids, {}, fresh_columns=columns, fresh_limit=fresh_limit)
