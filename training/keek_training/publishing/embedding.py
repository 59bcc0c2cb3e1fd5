"""The corpus: every video of the catalogue, embedded through Triton."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from keek_server.errors import SetupError
from keek_server.retrieval.index import Vectors
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION, VIDEO_TOWER
from keek_server.towers.features import MAX_TAGS, video_features
from keek_server.towers.lanes import Lane, open_lanes
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.checkpoint import Checkpoint

# Larger batches are no faster.
_LARGEST_BATCH = 4096
# One is computed, one waits in Triton, one is being encoded.
_LANES = 3
_DEADLINE_S = 60.0


T = TypeVar("T")


async def embed(
    towers: TowerClient,
    version: int,
    catalogue: Catalogue,
    checkpoint: Checkpoint | None = None,
) -> Vectors:
    """The vector of every video from one version of the video tower: float32 [n, DIMENSION].

    Features are encoded in a thread while Triton computes the batches before.

    Args:
        towers: Asked for the vectors.
        version: Of the video tower.
        catalogue: n videos.
        checkpoint: Has vectors of the same tower already, and keeps those that come.

    Raises:
        UnavailableError: When Triton fails; nothing was published then.
        SetupError: When vectors are not finite: they can neither be clustered nor found.
    """
    count = len(catalogue)
    batch = min(_LARGEST_BATCH, await towers.max_batch_size(VIDEO_TOWER, version))
    vectors = np.empty((count, DIMENSION), np.float32)
    known = np.zeros(count, np.bool_)
    if checkpoint is not None:
        known = await asyncio.to_thread(checkpoint.restore, catalogue, vectors)
    parts = _parts(np.flatnonzero(~known), batch)
    with (
        ThreadPoolExecutor(1, "features") as encoder,
        tqdm(total=count, initial=int(known.sum()), unit="video", desc="embedding the corpus") as progress,
    ):
        work = _Work(catalogue, vectors, encoder, progress, checkpoint)
        async with open_lanes(towers, VIDEO_TOWER, version, count=_LANES, rows=batch, free=MAX_TAGS) as lanes:
            try:
                async with asyncio.TaskGroup() as group:
                    for lane in lanes:
                        group.create_task(work.take(lane, parts))
            except ExceptionGroup as errors:
                # The lanes fail for one reason, and callers know its class.
                raise errors.exceptions[0] from errors
    _refuse_unless_finite(vectors, catalogue)
    return vectors


_Part = slice | list[int]
"""Rows: a slice where they follow each other, which costs the encoder nothing."""


def _parts(rows: npt.NDArray[np.int64], batch: int) -> Iterator[_Part]:
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        first, last = int(part[0]), int(part[-1])
        yield slice(first, last + 1) if last - first + 1 == len(part) else part.tolist()


def _chosen(column: Sequence[T], part: _Part) -> Sequence[T]:
    return column[part] if isinstance(part, slice) else [column[row] for row in part]


@dataclass(frozen=True, slots=True)
class _Work:
    catalogue: Catalogue
    vectors: Vectors
    encoder: ThreadPoolExecutor
    progress: Any
    checkpoint: Checkpoint | None

    async def take(self, lane: Lane, parts: Iterator[_Part]) -> None:
        """Takes parts, which the lanes share, until there is none left."""
        run = asyncio.get_running_loop().run_in_executor
        for part in parts:
            await run(self.encoder, self._load, lane, part)
            found = await lane.vectors(deadline_s=_DEADLINE_S)
            self.vectors[part] = found
            if self.checkpoint is not None:
                # By the one thread of the encoder: parts come one after the other.
                own = _chosen(self.catalogue.video_ids, part)
                await run(self.encoder, self.checkpoint.add, own, self.vectors[part])
            self.progress.update(len(found))

    def _load(self, lane: Lane, part: _Part) -> None:
        own = self.catalogue
        lane.load(
            video_features(
                _chosen(own.video_ids, part),
                _chosen(own.owner_ids, part),
                _chosen(own.tags, part),
                _chosen(own.durations_s, part),
                own.clip_vectors[part],
            )
        )


def _refuse_unless_finite(vectors: Vectors, catalogue: Catalogue) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise SetupError(
            f"the video tower gives vectors that are not finite for {len(bad)} videos, "
            f"the first of them {catalogue.video_ids[bad[0]]!r}"
        )
