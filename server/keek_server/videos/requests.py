"""Requests that change a video, remembered by their request_id so that a repeated one is harmless."""

import uuid

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import InvalidArgumentError
from keek_server.storage.database import Database
from keek_server.storage.tables import video_requests


def is_known(connection: sa.Connection, request_id: str, method: str, video_id: str) -> bool:
    """Whether a request was carried out before.

    Raises:
        InvalidArgumentError: When the request_id is that of another request.
    """
    query = sa.select(video_requests.c.method, video_requests.c.video_id)
    known = connection.execute(query.where(video_requests.c.request_id == uuid.UUID(request_id))).first()
    if known is not None and tuple(known) != (method, video_id):
        raise InvalidArgumentError.of("request_id", "is that of another request")
    return known is not None


def is_repeated(connection: sa.Connection, request_id: str, method: str, video_id: str) -> bool:
    """The same; if it was not, it is from now on, when the transaction commits.

    A request without an id is never known.
    """
    if not request_id:
        return False
    if is_known(connection, request_id, method, video_id):
        return True
    row = {
        "request_id": uuid.UUID(request_id),
        "method": method,
        "video_id": video_id,
        "create_time_us": now_us(),
    }
    connection.execute(video_requests.insert().values(row))
    return False


async def forget_requests(database: Database, before_us: int, limit: int) -> bool:
    """Forgets some of the requests that were carried out before a time; False when there are none."""
    old = (
        sa.select(video_requests.c.request_id).where(video_requests.c.create_time_us < before_us).limit(limit)
    )
    delete = video_requests.delete().where(video_requests.c.request_id.in_(old))
    return await database.transact(lambda connection: connection.execute(delete).rowcount > 0)
