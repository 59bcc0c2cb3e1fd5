"""The catalogue as a release is built from it."""

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from keek_server.interactions.kinds import InteractionKind
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, interactions, videos
from keek_server.towers.contract import CLIP_DIMENSION
from keek_server.towers.features import Float16Array
from keek_server.videos.changes import ChangeFeed
from keek_server.videos.video import VideoState

_ROWS_A_PAGE = 50_000

_ClipPage = tuple[Float16Array, npt.NDArray[np.bool_]]
"""The clip vectors of those rows of a page that have one, and which these are."""


@dataclass(slots=True)
class Catalogue:
    """The columns of the videos that may be recommended, ordered by id: n rows."""

    seq: int
    """The change of the catalogue up to which it is complete."""
    video_ids: list[str] = field(default_factory=list)
    owner_ids: list[str] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    create_times_us: list[int] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    clip_vectors: Float16Array = field(
        default_factory=lambda: np.empty((0, CLIP_DIMENSION), np.float16), repr=False
    )
    """float16 [n, CLIP_DIMENSION]; zeros where a video has none."""
    has_clip: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    """bool [n]."""
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 [n]: interactions of each video, skips left out."""

    def __len__(self) -> int:
        return len(self.video_ids)


async def read_catalogue(database: Database, reads: Callable[[str], bool] = lambda _: True) -> Catalogue:
    """Reads all videos with their clip vectors, and how often each was interacted with.

    Args:
        database: Opened by the caller.
        reads: Of which CLIP (`clip_model`) the vectors are taken; others count as none.
    """
    # Before the rows: what changes while they are read is newer than this, and comes again.
    catalogue = Catalogue(await ChangeFeed(database).last())
    pages: deque[_ClipPage] = deque()
    async for rows in _pages(database):
        ids, owners, tags, durations, times, languages, regions, models, vectors = zip(*rows, strict=True)
        catalogue.video_ids += ids
        catalogue.owner_ids += owners
        # The same few tags come again and again: one object each, hashed once.
        catalogue.tags += ([sys.intern(tag) for tag in own] for own in tags)
        catalogue.durations_s += durations
        catalogue.create_times_us += times
        catalogue.languages += map(sys.intern, languages)
        catalogue.regions += map(sys.intern, regions)
        pages.append(_clip_page(models, vectors, reads))
    catalogue.clip_vectors, catalogue.has_clip = _joined(pages)
    counts = await _counts(database)
    catalogue.counts = np.fromiter((counts.get(id_, 0) for id_ in catalogue.video_ids), np.int64)
    return catalogue


def _clip_page(
    models: tuple[str | None, ...], vectors: tuple[bytes | None, ...], reads: Callable[[str], bool]
) -> _ClipPage:
    usable = {model: model is not None and reads(model) for model in set(models)}
    has = np.fromiter((usable[model] for model in models), np.bool_, count=len(models))
    own = b"".join(vector for vector, is_used in zip(vectors, has, strict=True) if is_used and vector)
    return np.frombuffer(own, "<f2").reshape(-1, CLIP_DIMENSION), has


def _joined(pages: deque[_ClipPage]) -> tuple[Float16Array, npt.NDArray[np.bool_]]:
    """The columns `clip_vectors` and `has_clip`. Each page goes when it is copied: they would be twice
    the memory otherwise, a gigabyte more for a million videos."""
    has_clip = np.concatenate([np.empty(0, np.bool_), *(has for _, has in pages)])
    # Rows that stay zero take no memory.
    vectors = np.zeros((len(has_clip), CLIP_DIMENSION), np.float16)
    start = 0
    while pages:
        own, has = pages.popleft()
        vectors[start : start + len(has)][has] = own
        start += len(has)
    return vectors, has_clip


async def _pages(database: Database) -> AsyncIterator[Any]:
    """The rows by id, one bounded transaction a page."""
    columns = (
        sa.select(
            videos.c.video_id,
            videos.c.owner_id,
            videos.c.tags,
            videos.c.duration_s,
            videos.c.create_time_us,
            videos.c.language,
            videos.c.region,
            clip_vectors.c.clip_model,
            clip_vectors.c.vector,
        )
        .select_from(videos.outerjoin(clip_vectors, clip_vectors.c.video_id == videos.c.video_id))
        .where(videos.c.state == VideoState.READY)
        .order_by(videos.c.video_id)
        .limit(_ROWS_A_PAGE)
    )
    last = ""
    while True:
        async with database.engine.connect() as connection:
            rows = (await connection.execute(columns.where(videos.c.video_id > last))).all()
        if not rows:
            return
        last = rows[-1].video_id
        yield rows


async def _counts(database: Database) -> dict[str, int]:
    counted = (
        sa.select(interactions.c.video_id, sa.func.count())
        .where(interactions.c.kind != InteractionKind.SKIP)
        .group_by(interactions.c.video_id)
    )
    # The whole table may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        return {row[0]: row[1] for row in (await connection.execute(counted)).all()}
