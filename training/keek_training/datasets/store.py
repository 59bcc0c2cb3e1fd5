"""Data sets into SQL and back: what was imported is what the training job reads by default."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, repeat, tee
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors
from keek_server.storage.tables import interactions as interactions_table
from keek_server.storage.tables import videos as videos_table
from keek_server.towers.contract import CLIP_DIMENSION
from keek_server.towers.features import Float16Array
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video, VideoState
from keek_training.datasets.assemble import assemble
from keek_training.datasets.dataset import INTERACTION_EXTRAS, INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset
from keek_training.datasets.event_ids import event_ids

_VIDEOS_A_TRANSACTION = 2_000
_INTERACTIONS_A_TRANSACTION = 10_000
_ROWS_A_PAGE = 50_000
_LOGGED_SCHEMA = pa.schema([*INTERACTION_SCHEMA, INTERACTION_EXTRAS.field("watched_ms")])
_CLIP_SCHEMA = pa.schema([("video_id", pa.string()), ("clip_model", pa.string()), ("vector", pa.binary())])


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What an import did; importing the same data again creates nothing."""

    videos_created: int
    videos_updated: int
    interactions_created: int
    interactions_duplicate: int
    """Already stored, by an earlier import of the same data."""


async def import_dataset(
    database: Database, dataset: Dataset, *, store_videos: bool = True, progress: bool = False
) -> ImportSummary:
    """Stores the videos, and appends the interactions to the log in the order of their times.

    Videos that are known are replaced. Every transaction is bounded, so that a server
    on the same database goes on working; an import that was cut off is finished by
    importing again.

    Args:
        database: Opened by the caller.
        dataset: What to store.
        store_videos: False where the videos are those that are stored already.
        progress: Whether to show progress bars on standard error.

    Raises:
        UnavailableError: When the database is down or late.
    """
    videos = dataset.videos if store_videos else dataset.videos.slice(0, 0)
    videos_created = await _import_videos(database, videos, progress)
    interactions_created = await _import_interactions(database, dataset, progress)
    return ImportSummary(
        videos_created=videos_created,
        videos_updated=videos.num_rows - videos_created,
        interactions_created=interactions_created,
        interactions_duplicate=dataset.interactions.num_rows - interactions_created,
    )


async def load_dataset(
    database: Database,
    reads: Callable[[str], bool] = lambda _: True,
    interactions: pa.Table | None = None,
    *,
    last_seq: int | None = None,
) -> Dataset:
    """All videos and interactions that are stored.

    Args:
        database: Opened by the caller.
        reads: Of which CLIP (`clip_model`) the clip vectors are taken; others count as none.
        interactions: Those that are taken, instead of all.
        last_seq: Of the log: nothing behind it is taken; all by default.

    Raises:
        UnavailableError: When the database is down or late.
    """
    if interactions is None:
        key = interactions_table.c.seq
        until = [] if last_seq is None else [key <= last_seq]
        pages = [page async for page in _pages(database, key, _LOGGED_SCHEMA, *until)]
        interactions = pa.concat_tables([_LOGGED_SCHEMA.empty_table(), *pages])
        if interactions["watched_ms"].null_count == interactions.num_rows:
            interactions = interactions.drop_columns(["watched_ms"])
    dataset = assemble("sql", await load_videos(database), interactions)
    return replace(dataset, clip_vectors=await _load_clip_vectors(database, dataset.videos, reads))


async def _load_clip_vectors(
    database: Database, videos: pa.Table, reads: Callable[[str], bool]
) -> Float16Array | None:
    """A row a video, in the order of the table; None when no video has one."""
    rows = {video_id: row for row, video_id in enumerate(videos["video_id"].to_pylist())}
    vectors = np.zeros((len(rows), CLIP_DIMENSION), np.float16)
    found = False
    async for page in _pages(database, clip_vectors.c.video_id, _CLIP_SCHEMA):
        for video_id, clip_model, content in zip(*(column.to_pylist() for column in page), strict=True):
            if video_id in rows and reads(clip_model):
                vectors[rows[video_id]] = np.frombuffer(content, "<f2")
                found = True
    return vectors if found else None


async def load_videos(database: Database) -> pa.Table:
    """All videos that there are (VIDEO_SCHEMA); those that were deleted are none.

    Raises:
        UnavailableError: When the database is down or late.
    """
    exists = videos_table.c.state != VideoState.DELETED
    videos = [page async for page in _pages(database, videos_table.c.video_id, VIDEO_SCHEMA, exists)]
    return pa.concat_tables([VIDEO_SCHEMA.empty_table(), *videos])


async def _import_videos(database: Database, videos: pa.Table, progress: bool) -> int:
    catalogue = Catalogue(database)
    created = 0
    with _bar("videos", videos.num_rows, progress) as bar:
        for start in range(0, videos.num_rows, _VIDEOS_A_TRANSACTION):
            batch = videos.slice(start, _VIDEOS_A_TRANSACTION)
            created += await catalogue.put([Video(**row) for row in batch.to_pylist()])
            bar.update(batch.num_rows)
    return created


async def _import_interactions(database: Database, dataset: Dataset, progress: bool) -> int:
    log = InteractionLog(database)
    created = 0
    with _bar("interactions", dataset.interactions.num_rows, progress) as bar:
        for batch in _batches(dataset):
            (appended,) = await log.commit([batch])
            created += sum(appended.created)
            bar.update(len(batch))
    return created


def _batches(dataset: Dataset) -> Iterator[list[Interaction]]:
    """Events for the log, a transaction's worth at a time."""
    ids, tag_lists = (dataset.videos[name].to_pylist() for name in ("video_id", "tags"))
    tags = dict(zip(ids, map(tuple, tag_lists), strict=True))
    events, same = tee(_events(dataset.interactions))
    given = zip(*(_extra(dataset.interactions, name) for name in INTERACTION_EXTRAS.names), strict=True)
    interactions = (
        Interaction(
            UUID(own_id).hex if own_id else made_id.hex,
            user_id,
            video_id,
            InteractionKind(kind),
            event_time_us,
            region or "",
            tags.get(video_id, ()),
            watched_ms,
        )
        for (user_id, video_id, kind, event_time_us), made_id, (own_id, region, watched_ms) in zip(
            same, event_ids(events), given, strict=True
        )
    )
    while batch := list(islice(interactions, _INTERACTIONS_A_TRANSACTION)):
        yield batch


def _events(interactions: pa.Table) -> Iterator[tuple[str, str, int, int]]:
    for batch in interactions.to_batches(max_chunksize=_ROWS_A_PAGE):
        yield from zip(*(batch[name].to_pylist() for name in INTERACTION_SCHEMA.names), strict=True)


def _extra(interactions: pa.Table, name: str) -> Iterator[Any]:
    """A column of INTERACTION_EXTRAS; None in each row where the data lacks it."""
    if name not in interactions.column_names:
        yield from repeat(None, interactions.num_rows)
        return
    for batch in interactions.select([name]).to_batches(max_chunksize=_ROWS_A_PAGE):
        yield from batch[name].to_pylist()


async def _pages(
    database: Database, key: sa.Column[Any], schema: pa.Schema, *where: sa.ColumnElement[bool]
) -> AsyncIterator[pa.Table]:
    """A table's rows in the order of its key, as Arrow, one bounded transaction a page."""
    columns = [key.table.c[name] for name in schema.names]
    query = sa.select(key, *columns).where(*where).order_by(key).limit(_ROWS_A_PAGE)
    last = None
    while True:
        async with database.read() as connection:
            page = query if last is None else query.where(key > last)
            rows = (await connection.execute(page)).all()
        if not rows:
            return
        last = rows[-1][0]
        # zip needs no objects of its own for the rows, unlike a comprehension for each column.
        _, *values = zip(*rows, strict=True)
        yield pa.table(
            [pa.array(column, type_) for column, type_ in zip(values, schema.types, strict=True)], schema
        )


def _bar(unit: str, total: int, progress: bool) -> "tqdm[Any]":
    return tqdm(total=total, desc=unit, unit=f" {unit}", unit_scale=True, disable=not progress)
