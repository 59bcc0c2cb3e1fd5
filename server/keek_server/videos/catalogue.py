"""The catalogue in SQL: what may be recommended."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import sqlalchemy as sa

from keek_server.errors import NotFoundError
from keek_server.storage.database import Database
from keek_server.storage.tables import videos as table

_BRIEFS_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Video:
    """A video's metadata."""

    video_id: str
    owner_id: str
    """Empty when unknown."""
    tags: list[str]
    duration_s: float
    """0 when unknown."""
    title: str
    create_time_us: int


class Brief(NamedTuple):
    """What the request path needs to know of a video."""

    owner_id: str
    tags: tuple[str, ...]


class Catalogue:
    """Reads and writes videos; remembers the briefs of those it was asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # They change so rarely that a stale one is harmless: it moves a cap, or a place in a tag's list.
        self._briefs: OrderedDict[str, Brief] = OrderedDict()

    async def get(self, video_id: str) -> Video:
        """
        Raises:
            NotFoundError: When the video is not known.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(_VIDEOS.where(table.c.video_id == video_id))).first()
        if row is None:
            raise NotFoundError(f"no video {video_id!r}")
        return Video(*row)

    async def list(self, *, after: str, owner_id: str, limit: int) -> list[Video]:
        """The next videos behind the id `after`, by id; only those of `owner_id` when it is not empty."""
        query = _VIDEOS.where(table.c.video_id > after).order_by(table.c.video_id).limit(limit)
        if owner_id:
            query = query.where(table.c.owner_id == owner_id)
        async with self._database.read() as connection:
            return [Video(*row) for row in (await connection.execute(query)).all()]

    async def put(self, videos: Sequence[Video]) -> int:
        """Creates or replaces all of `videos` in one transaction.

        Returns:
            How many were new.
        """
        ids = {video.video_id for video in videos}
        insert = self._database.insert(table)
        upsert = insert.on_conflict_do_update(
            index_elements=[table.c.video_id],
            set_={name: insert.excluded[name] for name in table.c.keys() if name != "video_id"},  # noqa: SIM118
        )
        async with self._database.write() as connection:
            known = await connection.execute(_IDS.where(table.c.video_id.in_(ids)))
            created = len(ids) - len(known.all())
            # In one order, so that two imports never wait for each other's rows in a circle.
            ordered = sorted(videos, key=lambda video: video.video_id)
            await connection.execute(upsert, [asdict(video) for video in ordered])
        for video_id in ids:
            self._briefs.pop(video_id, None)
        return created

    async def briefs(self, video_ids: Iterable[str]) -> dict[str, Brief]:
        """The brief of each video that is known; unknown videos are absent."""
        wanted = set(video_ids)
        found = {video_id: self._briefs[video_id] for video_id in wanted if video_id in self._briefs}
        if missing := wanted - found.keys():
            async with self._database.read() as connection:
                rows = (await connection.execute(_BRIEFS.where(table.c.video_id.in_(missing)))).all()
            read = {video_id: Brief(owner_id, tuple(tags)) for video_id, owner_id, tags in rows}
            found.update(read)
            self._remember(read)
        return found

    def _remember(self, briefs: dict[str, Brief]) -> None:
        self._briefs.update(briefs)
        while len(self._briefs) > _BRIEFS_REMEMBERED:
            self._briefs.popitem(last=False)


_VIDEOS = sa.select(
    table.c.video_id,
    table.c.owner_id,
    table.c.tags,
    table.c.duration_s,
    table.c.title,
    table.c.create_time_us,
)
_IDS = sa.select(table.c.video_id)
_BRIEFS = sa.select(table.c.video_id, table.c.owner_id, table.c.tags)
