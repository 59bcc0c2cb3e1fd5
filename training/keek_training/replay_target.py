"""A release, opened without a server to say what it would have shown: its exported towers in ONNX Runtime,
its index, and what the catalogue has become since."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.errors import FailedPreconditionError, SetupError
from keek_server.feed.history import served_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.releases.fresh import FreshVideos
from keek_server.releases.plan import ReleaseState
from keek_server.releases.ranking import RankedVideos
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.retrieval.fresh import Allowed
from keek_server.retrieval.index import Mask
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.milvus_store import open_milvus
from keek_server.retrieval.query import Excluded, Hits, Query
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_server.towers.ranking import RankedPage
from keek_server.towers.users import user_batch
from keek_server.videos.changes import ChangeFeed
from keek_training.evaluation.served import Tower, onnx_tower
from keek_training.publishing.milvus import PATIENT_S
from keek_training.publishing.repository import MODEL_FILE
from keek_training.publishing.source import TowerSource

_MARGIN: Final = 3
"""Videos searched per slot, as feeds do."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One page of the past, and what was known then."""

    user_id: str
    now_us: int
    history: Sequence[HistoryEntry]
    """At least what the release reads of it, newest last."""
    excluded: frozenset[str]
    """Videos that the page could not show in its personalised slots."""
    beside: tuple[str, ...]
    """Those that its other slots show."""
    slot_count: int
    """Of all slots."""


class OnnxTowers:
    """The towers of a release, asked as `TowerClient` is."""

    def __init__(self, source: TowerSource) -> None:
        self._source = source
        self._opened: dict[TowerContract, Tower] = {}

    async def vectors(
        self, tower: TowerContract, version: int, features: Tensors, *, deadline_s: float
    ) -> Float32Array:
        """See `TowerClient.vectors`; there is one version, and no deadline: nobody waits."""
        return await asyncio.to_thread(self.answer, tower, features)

    def answer(self, tower: TowerContract, features: Tensors) -> Float32Array:
        """The vectors of n rows, float32 [n, DIMENSION].

        Raises:
            SetupError: When ONNX Runtime refuses the file, or vectors are not finite.
        """
        if tower not in self._opened:
            self._opened[tower] = onnx_tower(self._source, tower)
        vectors = self._opened[tower](features)
        if not np.isfinite(vectors).all():
            raise SetupError(f"{tower.model} of {self._source.name} gives vectors that are not finite")
        return vectors


class Target:
    """What a release would have shown."""

    def __init__(self, release: Release, index: LiveIndex, towers: OnnxTowers) -> None:
        self.release = release
        self._index = index
        self._towers = towers
        self._ranked = RankedVideos.of(release.corpus, index)
        self._newest_us = int(release.corpus.columns["create_times_us"].max(initial=0))

    def choose(self, moments: Sequence[Moment], per_owner_cap: int) -> list[list[str] | None]:
        """The personalised videos of some pages, best first; None where the release does not know the user.

        More than a page needs, where there are so many; at most `per_owner_cap` of one owner with what stands
        beside them.
        """
        chosen: list[list[str] | None] = [None] * len(moments)
        known, vectors = self._user_vectors(moments)
        queries = [
            Query(
                vector,
                _MARGIN * moments[place].slot_count,
                self._then(moments[place].now_us),
                excluded=Excluded(moments[place].excluded),
            )
            for place, vector in zip(known, vectors, strict=True)
        ]
        for place, hits in zip(known, self._index.search(queries), strict=True):
            chosen[place] = self._capped(hits, moments[place].beside, per_owner_cap)
        return chosen

    def ranked_pages(
        self, moments: Sequence[Moment], video_ids: Sequence[Sequence[str]]
    ) -> list[tuple[Mask, RankedPage] | None]:
        """What the release's ranker would read of some pages and their videos, as `RankedVideos.page` gives
        it; None where the release does not know the user."""
        pages: list[tuple[Mask, RankedPage] | None] = [None] * len(moments)
        for place, vector in zip(*self._user_vectors(moments), strict=True):
            own, length = moments[place], self.release.manifest.history_length
            pages[place] = self._ranked.page(vector, video_ids[place], own.history[-length:], own.now_us)
        return pages

    def _user_vectors(self, moments: Sequence[Moment]) -> tuple[list[int], Float32Array]:
        """Which moments' users the release knows, and their vectors, float32 [known, DIMENSION]."""
        length = self.release.manifest.history_length
        inputs = [
            served_inputs(self._index, own.user_id, own.history[-length:], own.now_us) for own in moments
        ]
        known = [place for place, own in enumerate(inputs) if len(own.kinds)]
        if not known:
            return known, np.empty((0, DIMENSION), np.float32)
        return known, self._towers.answer(USER_TOWER, user_batch([inputs[place] for place in known]))

    def _then(self, now_us: int) -> Allowed | None:
        """Only videos that were there; None where all were."""
        if self._newest_us <= now_us and not len(self._index.fresh):
            return None
        return lambda columns: np.asarray(columns["create_times_us"] <= now_us)

    def _capped(self, hits: Hits, beside: Sequence[str], per_owner_cap: int) -> list[str]:
        _, columns = self._index.columns_of(beside, ("owners",))
        counts = Counter(columns["owners"].tolist())
        owners = hits.values(self._index.columns["owners"], "owners")
        kept = []
        for video_id, owner in zip(hits.found_ids(), owners, strict=True):
            if owner == 0 or counts[owner] < per_owner_cap:
                counts[owner] += 1
                kept.append(video_id)
        return kept


@asynccontextmanager
async def opened_target(release_id: str, database: Database, settings: Settings) -> AsyncIterator[Target]:
    """A release of the registry, with all that has changed in the catalogue since it was built.

    Raises:
        NotFoundError: When there is no such release.
        FailedPreconditionError: When its files are gone.
        SetupError: When a file is missing, or cannot be read.
        UnavailableError: When the database or Milvus fails.
    """
    registered = await ReleaseRegistry(database).get(release_id)
    if registered.state is not ReleaseState.READY:
        raise FailedPreconditionError(f"release {release_id} has no files: it cannot be replayed")
    with open_milvus(settings, PATIENT_S) as milvus:
        release = await asyncio.to_thread(Release.open, settings.release_dir / release_id, milvus=milvus)
        manifest, repository = release.manifest, settings.model_repository
        user_tower, video_tower = (
            repository / tower.model / str(manifest.models[tower].version) / MODEL_FILE
            for tower in (USER_TOWER, VIDEO_TOWER)
        )
        towers = OnnxTowers(TowerSource.of_files(user_tower, video_tower, manifest.history_length))
        fresh = FreshVideos(release, ChangeFeed(database), towers, fresh_limit=settings.fresh_limit)
        await fresh.catch_up()
        yield Target(release, fresh.index, towers)
