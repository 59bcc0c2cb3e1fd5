"""Uploads in SQL: how far each came, and what became of it."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import (
    BadMediaError,
    InvalidArgumentError,
    MediaProblem,
    NotFoundError,
    OutOfRangeError,
)
from keek_server.storage.database import Database
from keek_server.storage.tables import uploads as table
from keek_server.storage.tables import videos
from keek_server.videos.catalogue import raise_if_it_has_a_file
from keek_server.videos.removals import remove_later
from keek_server.videos.video import VideoState

_REASON_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload, whatever number of calls it takes."""

    upload_id: uuid.UUID
    video_id: str
    state: VideoState
    """EMBEDDING once the video is stored; from then on the video's own state tells."""
    size_bytes: int
    received_bytes: int
    """Durable bytes, from the beginning."""
    problem: str
    """MediaProblem of a file that was rejected; empty otherwise, as the reason."""
    reason: str

    def raise_if_rejected(self) -> None:
        """
        Raises:
            BadMediaError: As when it was rejected.
        """
        if self.state is VideoState.REJECTED:
            raise BadMediaError(MediaProblem(self.problem), self.reason)


class Uploads:
    """Reads and writes the table of uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, upload_id: uuid.UUID, video_id: str, size_bytes: int) -> Upload:
        """The upload of this id; made when it is new. One that is open is kept for as long as a new one.

        Raises:
            AlreadyExistsError: When it is new, and the video has a file.
            InvalidArgumentError: When it is known as one of another video, or of another size.
        """
        row = {
            "upload_id": upload_id,
            "video_id": video_id,
            "state": VideoState.UPLOADING,
            "size_bytes": size_bytes,
            "received_bytes": 0,
            "problem": "",
            "reason": "",
            "update_time_us": now_us(),
        }

        this = _UPLOADS.where(table.c.upload_id == upload_id)
        goes_on = table.update().where(table.c.upload_id == upload_id, _OPEN)

        def work(connection: sa.Connection) -> Upload:
            # First of all: from here on, nobody forgets it.
            connection.execute(goes_on.values(update_time_us=row["update_time_us"]))
            known = connection.execute(this).first()
            if known is None:
                raise_if_it_has_a_file(connection, video_id)
                connection.execute(self._database.insert(table).values(row).on_conflict_do_nothing())
                known = connection.execute(this).one()
            return _upload(known)

        upload = await self._database.transact(work)
        if (upload.video_id, upload.size_bytes) != (video_id, size_bytes):
            raise InvalidArgumentError.of("header.upload_id", "is that of another file")
        return upload

    async def get(self, upload_id: uuid.UUID) -> Upload:
        """
        Raises:
            NotFoundError: When there is no such upload.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(_UPLOADS.where(table.c.upload_id == upload_id))).first()
        if row is None:
            raise NotFoundError(f"no upload {upload_id}")
        return _upload(row)

    async def latest_of(self, video_id: str) -> Upload | None:
        """The upload of a video that changed last."""
        query = _UPLOADS.where(table.c.video_id == video_id).order_by(table.c.update_time_us.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _upload(row)

    async def received(self, upload_id: uuid.UUID, received_bytes: int) -> None:
        """Says that the first `received_bytes` are durable."""
        further = table.c.received_bytes < received_bytes
        await self._set(upload_id, {"received_bytes": received_bytes}, further)

    async def set_back(self, upload_id: uuid.UUID, received_bytes: int) -> None:
        """Says that only the first `received_bytes` are durable."""
        fewer = table.c.received_bytes > received_bytes
        await self._set(upload_id, {"received_bytes": received_bytes}, fewer, _OPEN)

    async def decoding(self, upload_id: uuid.UUID) -> None:
        """Says that all bytes are here."""
        await self._set(upload_id, {"state": VideoState.DECODING}, table.c.state == VideoState.UPLOADING)

    async def waiting_again(self, upload_id: uuid.UUID) -> None:
        """Says that the file is not looked at any more, and must be sent again."""
        await self._set(upload_id, {"state": VideoState.UPLOADING}, table.c.state == VideoState.DECODING)

    async def reject(self, upload_id: uuid.UUID, error: BadMediaError) -> None:
        """Says that the file is no video that can be served; no harm once a video is stored."""
        reason = error.violations[0].description[:_REASON_CHARACTERS]
        values = {"state": VideoState.REJECTED, "problem": error.reason.value, "reason": reason}
        await self._set(upload_id, values, _OPEN)

    async def unchanged_since(self, time_us: int, after: Upload | None, limit: int) -> list[Upload]:
        """The next uploads behind `after`, by id, that have not changed since a time."""
        query = _UPLOADS.where(table.c.update_time_us < time_us).order_by(table.c.upload_id).limit(limit)
        if after is not None:
            query = query.where(table.c.upload_id > after.upload_id)
        async with self._database.read() as connection:
            return [_upload(row) for row in (await connection.execute(query)).all()]

    async def forget(self, upload: Upload, time_us: int, files: Sequence[str]) -> None:
        """Removes an upload that has still not changed, and later those of its files that its video lacks."""
        this = (table.c.upload_id == upload.upload_id, table.c.update_time_us < time_us)
        named = sa.select(videos.c.original_url, videos.c.poster_url)

        def work(connection: sa.Connection) -> None:
            if connection.execute(table.delete().where(*this)).rowcount:
                kept = connection.execute(named.where(videos.c.video_id == upload.video_id)).first()
                remove_later(connection, set(files).difference(kept or ()))

        await self._database.transact(work)

    async def _set(
        self, upload_id: uuid.UUID, values: dict[str, Any], *conditions: sa.ColumnElement[bool]
    ) -> None:
        change = table.update().where(table.c.upload_id == upload_id, *conditions)
        statement = change.values(**values, update_time_us=now_us())

        def work(connection: sa.Connection) -> None:
            connection.execute(statement)

        await self._database.transact(work)


def finish_upload(connection: sa.Connection, upload_id: uuid.UUID) -> bool:
    """Says in the caller's transaction that the video of an upload is stored; False when it was before.

    Raises:
        BadMediaError: When it was rejected meanwhile.
        OutOfRangeError: When it was forgotten meanwhile, with its bytes.
    """
    this = table.c.upload_id == upload_id
    values = {
        "state": VideoState.EMBEDDING,
        "received_bytes": table.c.size_bytes,
        "update_time_us": now_us(),
    }
    if connection.execute(table.update().where(this, _OPEN).values(values)).rowcount:
        return True
    known = connection.execute(_UPLOADS.where(this)).first()
    if known is None:
        raise OutOfRangeError("bytes from 0 on are missing")
    _upload(known).raise_if_rejected()
    return False


def _upload(row: Any) -> Upload:
    return Upload(row[0], row[1], VideoState(row[2]), *row[3:])


_OPEN = table.c.state.in_((VideoState.UPLOADING, VideoState.DECODING))
_UPLOADS = sa.select(
    table.c.upload_id,
    table.c.video_id,
    table.c.state,
    table.c.size_bytes,
    table.c.received_bytes,
    table.c.problem,
    table.c.reason,
)
