"""Uploads in SQL: how far each came, and what became of it."""

import uuid
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import BadMediaError, InvalidArgumentError, MediaProblem, NotFoundError
from keek_server.storage.database import Database
from keek_server.storage.tables import uploads as table
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
        """The upload of this id; made when it is new.

        Raises:
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

        def work(connection: sa.Connection) -> Upload:
            connection.execute(self._database.insert(table).values(row).on_conflict_do_nothing())
            return _upload(connection.execute(_UPLOADS.where(table.c.upload_id == upload_id)).one())

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

    async def decoding(self, upload_id: uuid.UUID) -> None:
        """Says that all bytes are here."""
        await self._set(upload_id, {"state": VideoState.DECODING}, table.c.state == VideoState.UPLOADING)

    async def waiting_again(self, upload_id: uuid.UUID) -> None:
        """Says that the file is not looked at any more, and must be sent again."""
        await self._set(upload_id, {"state": VideoState.UPLOADING}, table.c.state == VideoState.DECODING)

    async def reject(self, upload_id: uuid.UUID, error: BadMediaError) -> None:
        """Says that the file is no video that can be served."""
        reason = error.violations[0].description[:_REASON_CHARACTERS]
        values = {"state": VideoState.REJECTED, "problem": error.reason.value, "reason": reason}
        await self._set(upload_id, values)

    async def forget_before(self, time_us: int, limit: int) -> list[uuid.UUID]:
        """Removes some of the uploads that have not changed since a time; gives their ids."""
        old = sa.select(table.c.upload_id).where(table.c.update_time_us < time_us).limit(limit)

        def work(connection: sa.Connection) -> list[uuid.UUID]:
            ids = list(connection.execute(old).scalars())
            connection.execute(table.delete().where(table.c.upload_id.in_(ids)))
            return ids

        return await self._database.transact(work)

    async def _set(
        self, upload_id: uuid.UUID, values: dict[str, Any], *conditions: sa.ColumnElement[bool]
    ) -> None:
        change = table.update().where(table.c.upload_id == upload_id, *conditions)
        statement = change.values(**values, update_time_us=now_us())

        def work(connection: sa.Connection) -> None:
            connection.execute(statement)

        await self._database.transact(work)


def finish_upload(connection: sa.Connection, upload_id: uuid.UUID) -> bool:
    """Says in the caller's transaction that the video of an upload is stored; False when it was before."""
    open_ = table.c.state.in_((VideoState.UPLOADING, VideoState.DECODING))
    change = table.update().where(table.c.upload_id == upload_id, open_)
    values = {
        "state": VideoState.EMBEDDING,
        "received_bytes": table.c.size_bytes,
        "update_time_us": now_us(),
    }
    return connection.execute(change.values(values)).rowcount == 1


def _upload(row: Any) -> Upload:
    return Upload(row[0], row[1], VideoState(row[2]), *row[3:])


_UPLOADS = sa.select(
    table.c.upload_id,
    table.c.video_id,
    table.c.state,
    table.c.size_bytes,
    table.c.received_bytes,
    table.c.problem,
    table.c.reason,
)
