"""Data sets into SQL and back: what was imported is what the training job reads by default."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.clock import now_us
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions as interactions_table
from keek_server.storage.tables import videos as videos_table
from keek_server.videos.catalogue import Catalogue, Video
from keek_training.datasets.assemble import assemble
from keek_training.datasets.dataset import INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset
from keek_training.datasets.event_ids import event_ids

_VIDEOS_A_TRANSACTION = 2_000
_INTERACTIONS_A_TRANSACTION = 10_000
_ROWS_A_PAGE = 50_000


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What an import did; importing the same data again creates nothing."""

    videos_created: int
    videos_updated: int
    interactions_created: int
    interactions_duplicate: int
    """Already stored, by an earlier import of the same data."""


async def import_dataset(database: Database, dataset: Dataset, *, progress: bool = False) -> ImportSummary:
    """Stores the videos, and appends the interactions to the log in the order of their times.

    Videos that are known are replaced. Every transaction is bounded, so that a server
    on the same database goes on working; an import that was cut off is finished by
    importing again.

    Args:
        database: Opened by the caller.
        dataset: What to store.
        progress: Whether to show progress bars on standard error.

    Raises:
        UnavailableError: When the database is down or late.
    """
    videos_created = await _import_videos(database, dataset.videos, progress)
    interactions_created = await _import_interactions(database, dataset.interactions, progress)
    return ImportSummary(
        videos_created=videos_created,
        videos_updated=dataset.videos.num_rows - videos_created,
        interactions_created=interactions_created,
        interactions_duplicate=dataset.interactions.num_rows - interactions_created,
    )


async def load_dataset(database: Database) -> Dataset:
    """All videos and interactions that are stored.

    Raises:
        UnavailableError: When the database is down or late.
    """
    videos = [page async for page in _pages(database, videos_table.c.video_id, VIDEO_SCHEMA)]
    interactions = [page async for page in _pages(database, interactions_table.c.seq, INTERACTION_SCHEMA)]
    return assemble(
        "sql",
        pa.concat_tables([VIDEO_SCHEMA.empty_table(), *videos]),
        pa.concat_tables([INTERACTION_SCHEMA.empty_table(), *interactions]),
    )


async def _import_videos(database: Database, videos: pa.Table, progress: bool) -> int:
    catalogue = Catalogue(database)
    created = 0
    with _bar("videos", videos.num_rows, progress) as bar:
        for start in range(0, videos.num_rows, _VIDEOS_A_TRANSACTION):
            batch = videos.slice(start, _VIDEOS_A_TRANSACTION)
            created += await catalogue.put([Video(**row) for row in batch.to_pylist()])
            bar.update(batch.num_rows)
    return created


async def _import_interactions(database: Database, interactions: pa.Table, progress: bool) -> int:
    insert = database.insert(interactions_table).on_conflict_do_nothing()
    created = 0
    with _bar("interactions", interactions.num_rows, progress) as bar:
        for batch in _batches(interactions):
            async with database.write() as connection:
                await database.lock_log(connection)
                before = (await connection.execute(_LAST_SEQ)).scalar_one() or 0
                await connection.execute(insert, batch)
                # Nobody else appends before this transaction ends: what is behind `before` is new.
                created += (await connection.execute(_COUNT_BEHIND, {"before": before})).scalar_one()
            bar.update(len(batch))
    return created


_LAST_SEQ = sa.select(sa.func.max(interactions_table.c.seq))
_COUNT_BEHIND = sa.select(sa.func.count()).where(interactions_table.c.seq > sa.bindparam("before"))


def _batches(interactions: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """Rows of the log, a transaction's worth at a time."""
    events, same = tee(_events(interactions))
    rows = zip(event_ids(events), same, strict=True)
    while batch := list(islice(rows, _INTERACTIONS_A_TRANSACTION)):
        record_time_us = now_us()
        yield [
            {
                "event_id": event_id,
                "user_id": user_id,
                "video_id": video_id,
                "kind": kind,
                "event_time_us": event_time_us,
                "record_time_us": record_time_us,
            }
            for event_id, (user_id, video_id, kind, event_time_us) in batch
        ]


def _events(interactions: pa.Table) -> Iterator[tuple[str, str, int, int]]:
    for batch in interactions.to_batches(max_chunksize=_ROWS_A_PAGE):
        yield from zip(*(batch[name].to_pylist() for name in INTERACTION_SCHEMA.names), strict=True)


async def _pages(database: Database, key: sa.Column[Any], schema: pa.Schema) -> AsyncIterator[pa.Table]:
    """A table's rows in the order of its key, as Arrow, one bounded transaction a page."""
    columns = [key.table.c[name] for name in schema.names]
    query = sa.select(key, *columns).order_by(key).limit(_ROWS_A_PAGE)
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
