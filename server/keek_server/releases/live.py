"""The release that this server runs, and the swap to the next one."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keek_server.errors import KeekError, SetupError
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.retrieval.searcher import Searcher
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION, USER_TOWER
from keek_server.towers.features import user_features
from keek_server.towers.users import UserVectors

logger = logging.getLogger(__name__)

_WARM_UP_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class ServingRelease:
    """A release with what answers for it: a request that captured one uses nothing else."""

    release: Release
    users: UserVectors
    searcher: Searcher


class LiveRelease:
    """Follows the registry. A request reads `current` once, at its entry, and keeps what it got."""

    def __init__(
        self, registry: ReleaseRegistry, towers: TowerClient, executor: ThreadPoolExecutor, settings: Settings
    ) -> None:
        self._registry = registry
        self._towers = towers
        self._settings = settings
        self._changed = asyncio.Event()
        self._executor = executor
        self.current: ServingRelease | None = None
        """None until the first release is active and ready."""

    async def wait(self) -> ServingRelease:
        """The current release, waiting for the first one."""
        while self.current is None:
            await self._changed.wait()
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
        users = UserVectors(self._towers, release.manifest.user_tower.version)
        self.current = ServingRelease(release, users, Searcher(release.index, self._executor))
        self._changed.set()
        logger.info("serving release %s: %d videos", release.id, len(release.corpus.ids))

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
