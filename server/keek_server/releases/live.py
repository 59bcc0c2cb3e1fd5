"""The release that this server runs, and the swap to the next one."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keek_server.errors import KeekError, SetupError, UnavailableError
from keek_server.releases.fresh import FreshVideos
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import VIDEO_COLUMNS, Audience, Release
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.searcher import SIDE_BATCH, Searcher
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient
from keek_server.towers.clip import Clip
from keek_server.towers.contract import DIMENSION, USER_TOWER
from keek_server.towers.features import user_features
from keek_server.towers.users import UserVectors
from keek_server.videos.changes import ChangeFeed

logger = logging.getLogger(__name__)

_WARM_UP_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class ServingRelease:
    """A release with what answers for it: a request that captured one uses nothing else."""

    release: Release
    users: UserVectors
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


@dataclass(frozen=True, slots=True)
class Executors:
    """The threads that search indexes."""

    feeds: ThreadPoolExecutor
    searches: ThreadPoolExecutor


class LiveRelease:
    """Follows the registry. A request reads `current` once, at its entry, and keeps what it got."""

    def __init__(
        self,
        registry: ReleaseRegistry,
        feed: ChangeFeed,
        towers: TowerClient,
        executors: Executors,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._feed = feed
        self._towers = towers
        self._settings = settings
        self._changed = asyncio.Event()
        self._executors = executors
        self._preparing: FreshVideos | None = None
        self.current: ServingRelease | None = None
        """None until the first release is active and ready."""

    def followed(self) -> list[FreshVideos]:
        """What changes of the catalogue have to reach: the current release, and one that is made ready."""
        own = [] if self.current is None else [self.current.fresh]
        return own if self._preparing is None else [*own, self._preparing]

    async def wait(self) -> ServingRelease:
        """The current release, waiting for the first one."""
        while self.current is None:
            await self._changed.wait()
        return self.current

    def serving(self) -> ServingRelease:
        """The current release.

        Raises:
            UnavailableError: Before the first one is active.
        """
        if self.current is None:
            raise UnavailableError("no release is active yet", retry_after_s=2.0)
        return self.current

    async def follow(self) -> None:
        """Swaps to whatever the registry says is active, until cancelled."""
        while True:
            try:
                await self.refresh()
            except KeekError as error:
                logger.warning("staying with release %s: %s", self.current and self.current.release.id, error)
            await asyncio.sleep(self._settings.release_poll_s)

    async def refresh(self) -> None:
        """Makes the active release the current one, if it is not.

        Raises:
            KeekError: When it cannot serve; the current release stays.
        """
        active = await self._registry.active()
        if active is None or (self.current is not None and self.current.release.id == active):
            return
        release = await asyncio.to_thread(Release.open, self._settings.release_dir / active)
        await self._warm_up(release)
        serving = self._prepare(release, await self._open_clip(release))
        self._preparing = serving.fresh
        try:
            # Before the swap: what was uploaded while the release was built would vanish for a moment.
            await serving.fresh.catch_up()
            self.current = serving
        finally:
            self._preparing = None
        self._changed.set()
        logger.info("serving release %s: %d videos", release.id, len(release.corpus.ids))

    def _prepare(self, release: Release, clip: Clip | None) -> ServingRelease:
        settings = self._settings
        fresh = FreshVideos(release, self._feed, self._towers, fresh_limit=settings.fresh_limit)
        audience = _audience(release, settings.fresh_limit)
        return ServingRelease(
            release,
            UserVectors(self._towers, release.manifest.user_tower.version),
            fresh,
            Searcher(fresh.index, self._executors.feeds),
            self._side_searcher(fresh.index),
            audience,
            self._side_searcher(audience),
            clip,
        )

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
        """A whole query against it: shows that Triton has the version and that the index answers."""
        version = release.manifest.user_tower.version
        history = np.asarray(release.corpus.vectors[:1])
        features = user_features(
            [""], [history], [np.ones(len(history), np.int32)], [np.zeros(len(history), np.float32)]
        )
        vectors = await self._towers.vectors(USER_TOWER, version, features, deadline_s=_WARM_UP_DEADLINE_S)
        if vectors.shape != (1, DIMENSION):
            raise SetupError(f"user_tower version {version} gave {vectors.shape}, expected (1, {DIMENSION})")
        await asyncio.to_thread(release.index.search, vectors, 100)


def _audience(release: Release, fresh_limit: int) -> LiveIndex:
    built = release.audience or Audience.none()
    columns = {VECTORS: VIDEO_COLUMNS[VECTORS]}
    return LiveIndex({VECTORS: built.index}, built.ids, {}, fresh_columns=columns, fresh_limit=fresh_limit)
