"""The catalogue in SQL: what may be recommended."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from keek_server.errors import AlreadyExistsError, NotFoundError
from keek_server.storage.database import Database
from keek_server.storage.tables import clip_vectors, embedding_queue
from keek_server.storage.tables import videos as table
from keek_server.videos.briefs import BriefCache
from keek_server.videos.changes import advance_clock
from keek_server.videos.removals import remove_later
from keek_server.videos.requests import is_known, is_repeated
from keek_server.videos.video import Brief, ClipVector, Video, VideoState

_OF_A_FILE = ("width", "height", "original_url", "poster_url")

MUTABLE = ("owner_id", "tags", "duration_s", "title", "language", "region")
"""What an update may change."""


class Catalogue:
    """Reads and writes videos; remembers the briefs of those it was asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._briefs = BriefCache()

    async def get(self, video_id: str) -> Video:
        """
        Raises:
            NotFoundError: When the video is not known.
        """
        if (video := await self.find(video_id)) is None:
            raise NotFoundError(f"no video {video_id!r}")
        return video

    async def find(self, video_id: str) -> Video | None:
        """A video; None when it is not known."""
        async with self._database.read() as connection:
            row = (await connection.execute(_VIDEOS.where(table.c.video_id == video_id))).first()
        return None if row is None else _video(row)

    async def check_free(self, video_id: str) -> None:
        """
        Raises:
            AlreadyExistsError: When the video has a file.
        """
        async with self._database.read() as connection:
            await connection.run_sync(raise_if_it_has_a_file, video_id)

    async def page(self, *, after: str, owner_id: str, limit: int) -> list[Video]:
        """The next videos behind the id `after`, by id; only those of `owner_id` when it is not empty."""
        query = _VIDEOS.where(table.c.video_id > after).order_by(table.c.video_id).limit(limit)
        if owner_id:
            query = query.where(table.c.owner_id == owner_id)
        async with self._database.read() as connection:
            return [_video(row) for row in (await connection.execute(query)).all()]

    async def was_done(self, request_id: str, method: str, video_id: str) -> bool:
        """See `is_repeated`; nothing is remembered by asking."""
        if not request_id:
            return False
        async with self._database.read() as connection:
            return await connection.run_sync(is_known, request_id, method, video_id)

    async def clip_vector(self, video_id: str) -> ClipVector | None:
        """A video's clip vector; None when it has none, or is not known."""
        query = sa.select(clip_vectors.c.clip_model, clip_vectors.c.vector)
        async with self._database.read() as connection:
            row = (await connection.execute(query.where(clip_vectors.c.video_id == video_id))).first()
        return None if row is None else ClipVector(*row)

    async def put(self, videos: Sequence[Video], vectors: Mapping[str, ClipVector] | None = None) -> int:
        """Creates or replaces the metadata of all of `videos` in one transaction; files stay.

        Args:
            videos: Of distinct ids.
            vectors: The clip vectors of some of them, by id; others keep what they have.

        Returns:
            How many were new.
        """
        rows = [video.as_row() for video in videos]
        given = [
            {"video_id": video_id, "clip_model": vector.clip_model, "vector": vector.content}
            for video_id, vector in (vectors or {}).items()
        ]
        upsert = self._database.upsert(table, keep=_OF_A_FILE, state=_STATE_WHEN_PUT)

        def work(connection: sa.Connection) -> int:
            seq = advance_clock(connection, len(rows))
            for offset, row in enumerate(rows):
                row["change_seq"] = seq + offset
            known = sa.select(sa.func.count()).where(
                table.c.video_id.in_([row["video_id"] for row in rows]), _EXISTS
            )
            created = len(rows) - connection.execute(known).scalar_one()
            connection.execute(upsert, rows)
            if given:
                connection.execute(self._database.upsert(clip_vectors), given)
            return created

        created = await self._database.transact(work)
        self.forget(video.video_id for video in videos)
        return created

    async def update(self, video_id: str, changes: Mapping[str, Any], request_id: str) -> Video:
        """Changes some of a video's MUTABLE columns; a repeated request changes nothing.

        Raises:
            NotFoundError: When the video is not known.
            InvalidArgumentError: When the request_id is that of another request.
        """

        def work(connection: sa.Connection) -> None:
            values = {**changes, "change_seq": advance_clock(connection, 1)}
            if is_repeated(connection, request_id, "UpdateVideo", video_id):
                return
            change = table.update().where(table.c.video_id == video_id, _EXISTS).values(values)
            if not connection.execute(change).rowcount:
                raise NotFoundError(f"no video {video_id!r}")

        await self._database.transact(work)
        self.forget([video_id])
        return await self.get(video_id)

    async def delete(self, video_id: str, request_id: str) -> None:
        """Deletes a video, and later its files; a repeated request does nothing.

        Raises:
            NotFoundError: When the video is not known.
            InvalidArgumentError: When the request_id is that of another request.
        """
        files = sa.select(table.c.original_url, table.c.poster_url)

        def work(connection: sa.Connection) -> None:
            seq = advance_clock(connection, 1)
            if is_repeated(connection, request_id, "DeleteVideo", video_id):
                return
            found = connection.execute(files.where(table.c.video_id == video_id, _EXISTS)).first()
            if found is None:
                raise NotFoundError(f"no video {video_id!r}")
            gone = {**_NOTHING, "change_seq": seq}
            connection.execute(table.update().where(table.c.video_id == video_id).values(gone))
            for other in (clip_vectors, embedding_queue):
                connection.execute(other.delete().where(other.c.video_id == video_id))
            remove_later(connection, found)

        await self._database.transact(work)
        self.forget([video_id])

    async def briefs(self, video_ids: Iterable[str], *, for_feed: bool = False) -> dict[str, Brief]:
        """The brief of each video that is known; unknown videos are absent.

        Args:
            video_ids: Of any videos.
            for_feed: Reads soon or not at all; see `HurriedReads.ask`.
        """
        wanted = set(video_ids)
        found = self._briefs.known(wanted)
        if missing := wanted - found.keys():
            read_rows = self._database.hurried.ask if for_feed else self._database.rows
            with self._briefs.reading() as reading:
                rows = await read_rows(_BRIEFS, {"video_ids": list(missing)})
                read = {video_id: Brief(owner_id, tuple(tags)) for video_id, owner_id, tags in rows}
                self._briefs.remember(read, reading)
            found.update(read)
        return found

    @property
    def forget_count(self) -> int:
        """How often briefs were forgotten; those that were read hold as long as it stands still."""
        return self._briefs.forget_count

    def forget(self, video_ids: Iterable[str]) -> None:
        """Reads the briefs of these anew when they are asked for again."""
        self._briefs.forget(video_ids)

    def forget_all(self) -> None:
        """The same for all videos."""
        self._briefs.forget_all()


def raise_if_it_has_a_file(connection: sa.Connection, video_id: str) -> None:
    """
    Raises:
        AlreadyExistsError: When a file of this video is stored.
    """
    query = sa.select(table.c.original_url).where(table.c.video_id == video_id, _EXISTS)
    if connection.execute(query).scalar():
        raise AlreadyExistsError(f"video {video_id!r} has a file already")


def _video(row: Sequence[Any]) -> Video:
    columns = list(row)
    columns[_STATE] = VideoState(columns[_STATE])
    return Video(*columns)


_STATE = 6
# A file that is still looked at makes the video READY when that is done.
_STATE_WHEN_PUT = sa.case(
    (table.c.state == VideoState.EMBEDDING, table.c.state), else_=sa.literal_column("excluded.state")
)
_EXISTS = table.c.state != VideoState.DELETED
# What is left of a deleted video: nothing that says anything of it, or of its owner.
_NOTHING: dict[str, Any] = {
    "state": VideoState.DELETED,
    "owner_id": "",
    "tags": [],
    "title": "",
    "duration_s": 0.0,
    "width": 0,
    "height": 0,
    "original_url": "",
    "poster_url": "",
    "language": "",
    "region": "",
}
_VIDEOS = sa.select(
    table.c.video_id,
    table.c.owner_id,
    table.c.tags,
    table.c.duration_s,
    table.c.title,
    table.c.create_time_us,
    table.c.state,
    table.c.width,
    table.c.height,
    table.c.original_url,
    table.c.poster_url,
    table.c.language,
    table.c.region,
).where(_EXISTS)
_BRIEFS = sa.select(table.c.video_id, table.c.owner_id, table.c.tags).where(
    _EXISTS, table.c.video_id.in_(sa.bindparam("video_ids", expanding=True))
)
