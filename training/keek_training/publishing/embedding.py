"""The corpus: every video of the catalogue, embedded through Triton."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from keek_server.errors import SetupError
from keek_server.retrieval.index import Vectors
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION, VIDEO_TOWER
from keek_server.towers.features import MAX_TAGS, video_features
from keek_server.towers.lanes import Lane, open_lanes
from keek_training.publishing.catalogue import Catalogue

# Larger batches are no faster.
_LARGEST_BATCH = 4096
# One is computed, one waits in Triton, one is being encoded.
_LANES = 3
_DEADLINE_S = 60.0


async def embed(towers: TowerClient, version: int, catalogue: Catalogue) -> Vectors:
    """The vector of every video from one version of the video tower: float32 [n, DIMENSION].

    Features are encoded in a thread while Triton computes the batches before.

    Raises:
        UnavailableError: When Triton fails; nothing was published then.
        SetupError: When vectors are not finite: they can neither be clustered nor found.
    """
    count = len(catalogue)
    batch = min(_LARGEST_BATCH, await towers.max_batch_size(VIDEO_TOWER, version))
    vectors = np.empty((count, DIMENSION), np.float32)
    parts = (slice(start, min(start + batch, count)) for start in range(0, count, batch))
    with (
        ThreadPoolExecutor(1, "features") as encoder,
        tqdm(total=count, unit="video", desc="embedding the corpus") as progress,
    ):
        async with open_lanes(towers, VIDEO_TOWER, version, count=_LANES, rows=batch, free=MAX_TAGS) as lanes:
            try:
                async with asyncio.TaskGroup() as group:
                    for lane in lanes:
                        group.create_task(
                            _embed_parts(lane, parts, catalogue, vectors, encoder, progress.update)
                        )
            except ExceptionGroup as errors:
                # The lanes fail for one reason, and callers know its class.
                raise errors.exceptions[0] from errors
    _refuse_unless_finite(vectors, catalogue)
    return vectors


async def _embed_parts(
    lane: Lane,
    parts: Iterator[slice],
    catalogue: Catalogue,
    vectors: Vectors,
    encoder: ThreadPoolExecutor,
    advance: Callable[[int], object],
) -> None:
    """Takes parts, which the lanes share, until there is none left."""
    for part in parts:
        await asyncio.get_running_loop().run_in_executor(encoder, _load, lane, catalogue, part)
        vectors[part] = await lane.vectors(deadline_s=_DEADLINE_S)
        advance(part.stop - part.start)


def _refuse_unless_finite(vectors: Vectors, catalogue: Catalogue) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise SetupError(
            f"the video tower gives vectors that are not finite for {len(bad)} videos, "
            f"the first of them {catalogue.video_ids[bad[0]]!r}"
        )


def _load(lane: Lane, catalogue: Catalogue, part: slice) -> None:
    lane.load(
        video_features(
            catalogue.video_ids[part],
            catalogue.owner_ids[part],
            catalogue.tags[part],
            catalogue.durations_s[part],
            catalogue.clip_vectors[part],
        )
    )
