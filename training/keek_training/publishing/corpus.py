"""The corpus: every video of the catalogue, embedded through Triton."""

import asyncio
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.interactions.kinds import InteractionKind
from keek_server.retrieval.index import Vectors
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions, videos
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION, VIDEO_TOWER
from keek_server.towers.features import video_features

_BATCH = VIDEO_TOWER.max_batch_size
_CONCURRENT = 2
_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The columns of the videos table that the towers read, ordered by id: n rows."""

    video_ids: list[str]
    owner_ids: list[str]
    tags: list[list[str]]
    durations_s: list[float]
    counts: npt.NDArray[np.int64]
    """Interactions of each video, skips left out."""


async def read_catalogue(database: Database) -> Catalogue:
    """Reads all videos, and how often each was interacted with."""
    columns = sa.select(videos.c.video_id, videos.c.owner_id, videos.c.tags, videos.c.duration_s)
    counted = (
        sa.select(interactions.c.video_id, sa.func.count())
        .where(interactions.c.kind != InteractionKind.SKIP)
        .group_by(interactions.c.video_id)
    )
    # The whole table may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        rows = (await connection.execute(columns.order_by(videos.c.video_id))).all()
        counts = {row[0]: row[1] for row in (await connection.execute(counted)).all()}
    ids, owners, tags, durations = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    totals = np.fromiter((counts.get(video_id, 0) for video_id in ids), np.int64, count=len(ids))
    return Catalogue(ids, owners, tags, durations, totals)


async def embed(towers: TowerClient, version: int, catalogue: Catalogue) -> Vectors:
    """The vector of every video from one version of the video tower: float32 [n, DIMENSION].

    Raises:
        UnavailableError: When Triton fails; nothing was published then.
    """
    count = len(catalogue.video_ids)
    vectors = np.empty((count, DIMENSION), np.float32)
    gate = asyncio.Semaphore(_CONCURRENT)
    with tqdm(total=count, unit="video", desc="embedding the corpus") as progress:

        async def embed_batch(start: int) -> None:
            part = slice(start, start + _BATCH)
            async with gate:
                features = video_features(
                    catalogue.video_ids[part],
                    catalogue.owner_ids[part],
                    catalogue.tags[part],
                    catalogue.durations_s[part],
                )
                vectors[part] = await towers.vectors(VIDEO_TOWER, version, features, deadline_s=_DEADLINE_S)
            progress.update(len(features["video"]))

        async with asyncio.TaskGroup() as group:
            for start in range(0, count, _BATCH):
                group.create_task(embed_batch(start))
    return vectors
