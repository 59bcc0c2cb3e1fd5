"""Scores of a page's candidates: what the ranker reads, in the one encoding that training and serving share,
and the calls for concurrent pages.

What is read of a candidate depends on the user and the candidate alone, never on the other candidates: a log
shows a part of those that were there, and a ranker that learnt from the parts would meet other wholes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.batching import Batcher
from keek_server.breaker import Breaker
from keek_server.errors import UnavailableError
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION, RANKER, RANKING_FEATURES
from keek_server.towers.features import Float32Array, Tensors

RANKED_HISTORY: Final = 20
"""Of a user's latest videos, so many are compared with each candidate."""

_MAX_WAITING: Final = 1024
_HOUR_US: Final = 3600e6
_POPULARITY_SCALE: Final = 1e4
"""A share of the interactions of a ten-thousandth is about where being popular begins."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What is known of n videos: [n, ...] each."""

    vectors: Float32Array
    """float32 [n, DIMENSION], of the same release as the user's."""
    owners: npt.NDArray[np.uint64]
    """Hashes of the owners' ids; 0 when unknown."""
    durations_s: Float32Array
    """0 when unknown."""
    create_times_us: npt.NDArray[np.int64]
    popularity: Float32Array
    """Share of all interactions, by the release's popular list; 0 where a video is not on it."""


@dataclass(frozen=True, slots=True)
class RankedPage:
    """One page as the ranker reads it."""

    user_vector: Float32Array
    """float32 [DIMENSION]."""
    vectors: Float32Array
    """float32 [n, DIMENSION]."""
    features: Float32Array
    """float32 [n, RANKING_FEATURES]."""


def ranking_features(
    user_vector: Float32Array,
    candidates: Candidates,
    history_vectors: Float32Array,
    history_owners: npt.NDArray[np.uint64],
    now_us: int,
) -> Float32Array:
    """What the ranker reads of n candidates, float32 [n, RANKING_FEATURES].

    Args:
        user_vector: float32 [DIMENSION].
        candidates: n videos.
        history_vectors: float32 [length, DIMENSION], of the user's latest videos; may be none.
        history_owners: uint64 [length], beside them.
        now_us: The moment that ages are counted to.
    """
    count, length = len(candidates.vectors), len(history_vectors)
    features = np.zeros((count, len(RANKING_FEATURES)), np.float32)
    features[:, 0] = candidates.vectors @ user_vector
    features[:, 1] = np.log(1.0 + _POPULARITY_SCALE * candidates.popularity)
    features[:, 2] = np.log(1.0 + np.maximum(now_us - candidates.create_times_us, 0) / _HOUR_US)
    features[:, 3] = np.log(1.0 + np.maximum(candidates.durations_s, 0.0))
    if length:
        same = candidates.owners[:, None] == history_owners
        features[:, 4] = (same & (history_owners != 0)).mean(axis=1)
        similar = _normalised(candidates.vectors) @ _normalised(history_vectors).T
        features[:, 5], features[:, 6] = similar.mean(axis=1), similar.max(axis=1)
    return features


def ranker_batch(pages: Sequence[RankedPage]) -> Tensors:
    """The ranker's input tensors for several pages, padded to the one with the most candidates."""
    width = max((len(page.vectors) for page in pages), default=0) or 1
    tensors: dict[str, Float32Array] = {
        "user_vector": np.stack([page.user_vector for page in pages]),
        "video_vectors": np.zeros((len(pages), width, DIMENSION), np.float32),
        "features": np.zeros((len(pages), width, len(RANKING_FEATURES)), np.float32),
        "mask": np.zeros((len(pages), width), np.float32),
    }
    for row, page in enumerate(pages):
        count = len(page.vectors)
        tensors["video_vectors"][row, :count] = page.vectors
        tensors["features"][row, :count] = page.features
        tensors["mask"][row, :count] = 1.0
    return dict(tensors)


class Ranker:
    """Asks one version of the ranker."""

    def __init__(self, towers: TowerClient, version: int, *, deadline_s: float) -> None:
        """
        Args:
            towers: Asked for the scores.
            version: Of the ranker.
            deadline_s: For one call, which may be for many pages.
        """
        self.version = version
        self._towers = towers
        self._deadline_s = deadline_s
        # Of this version alone, and not of the towers: without it, feeds lack nothing but their order.
        self._breaker = Breaker(f"Triton, {RANKER.model} version {version},", "ranker", deadline_s=deadline_s)
        self._batcher: Batcher[RankedPage, Float32Array] = Batcher(
            self._run, max_weight=RANKER.max_batch_size, max_waiting=_MAX_WAITING
        )

    async def scores(self, page: RankedPage) -> Float32Array:
        """The scores of a page's n candidates: float32 [n], whatever the model says.

        Raises:
            UnavailableError: When Triton does not answer, another version did, or the answer does not fit.
            OverloadedError: When too many wait.
        """
        self._breaker.check(lambda: self._batcher.submit(page))
        return await self._batcher.submit(page)

    def retire(self) -> None:
        """Its release serves no more: nobody finds out any longer whether it answers."""
        self._breaker.retire()

    async def _run(self, batch: list[RankedPage]) -> Sequence[Float32Array]:
        tensors = ranker_batch(batch)
        with self._breaker.asking():
            scores = await self._towers.vectors(RANKER, self.version, tensors, deadline_s=self._deadline_s)
            if scores.shape != tensors["mask"].shape:
                shapes = f"{list(scores.shape)}, not {list(tensors['mask'].shape)}"
                raise UnavailableError(f"ranker version {self.version} gave scores {shapes}")
        return [own[: len(page.vectors)] for own, page in zip(scores, batch, strict=True)]


def _normalised(vectors: Float32Array) -> Float32Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-6), np.float32)
