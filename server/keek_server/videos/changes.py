"""The changes of the catalogue, in an order that every server reads alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from keek_server.storage.database import Database
from keek_server.storage.tables import catalogue_clock, clip_vectors, videos
from keek_server.videos.video import ClipVector, VideoState


class Change(NamedTuple):
    """A video as it is since its latest change."""

    seq: int
    video_id: str
    owner_id: str
    tags: tuple[str, ...]
    duration_s: float
    create_time_us: int
    language: str
    region: str
    state: VideoState
    clip: ClipVector | None


def advance_clock(connection: sa.Connection, count: int) -> int:
    """Takes `count` numbers for changes, and holds the clock until the transaction ends.

    Must come before any row of the catalogue is locked, so that no two transactions wait for each
    other in a circle.

    Returns:
        The first of the numbers.
    """
    step = catalogue_clock.update().values(seq=catalogue_clock.c.seq + count)
    last: int = connection.execute(step.returning(catalogue_clock.c.seq)).scalar_one()
    return last - count + 1


class ChangeFeed:
    """Reads changes. Of a video that changed several times, only the latest is seen."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last(self) -> int:
        """The number of the latest change."""
        ((seq,),) = await self._database.rows(sa.select(catalogue_clock.c.seq))
        return int(seq)

    async def count(self, after_seq: int) -> int:
        """How many videos changed behind `after_seq`."""
        query = sa.select(sa.func.count()).select_from(videos).where(videos.c.change_seq > after_seq)
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def read_ids(self, after_seq: int, limit: int) -> Sequence[tuple[int, str]]:
        """The numbers and videos of the next changes behind `after_seq`, oldest first."""
        query = _IDS.where(videos.c.change_seq > after_seq).order_by(videos.c.change_seq).limit(limit)
        return [(row[0], row[1]) for row in await self._database.rows(query)]

    async def read(self, after_seq: int, limit: int) -> Sequence[Change]:
        """The next changes behind `after_seq`, oldest first; clip vectors included.

        Raises:
            UnavailableError: When the database is down or late.
        """
        query = _CHANGES.where(videos.c.change_seq > after_seq).order_by(videos.c.change_seq).limit(limit)
        return await self._read(query)

    async def latest_of(self, video_ids: Sequence[str]) -> Sequence[Change]:
        """The latest change of each of some videos, as many as fit into one query; in no order.

        Raises:
            UnavailableError: When the database is down or late.
        """
        return await self._read(_CHANGES.where(videos.c.video_id.in_(video_ids)))

    async def _read(self, query: "sa.Select[Any]") -> Sequence[Change]:
        async with self._database.read() as connection:
            return list(map(_change, (await connection.execute(query)).all()))


def _change(row: Any) -> Change:
    return Change(
        row.change_seq,
        row.video_id,
        row.owner_id,
        tuple(row.tags),
        row.duration_s,
        row.create_time_us,
        row.language,
        row.region,
        VideoState(row.state),
        _clip(row.clip_model, row.vector),
    )


def _clip(clip_model: str | None, content: bytes | None) -> ClipVector | None:
    return None if clip_model is None or content is None else ClipVector(clip_model, content)


_IDS = sa.select(videos.c.change_seq, videos.c.video_id)
_CHANGES = sa.select(
    videos.c.change_seq,
    videos.c.video_id,
    videos.c.owner_id,
    videos.c.tags,
    videos.c.duration_s,
    videos.c.create_time_us,
    videos.c.language,
    videos.c.region,
    videos.c.state,
    clip_vectors.c.clip_model,
    clip_vectors.c.vector,
).select_from(videos.outerjoin(clip_vectors, clip_vectors.c.video_id == videos.c.video_id))
