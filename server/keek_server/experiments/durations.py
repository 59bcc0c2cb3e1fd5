"""How long videos are, of those that were watched for a known time."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from keek_server.storage.database import Database
from keek_server.storage.tables import videos

_VIDEOS_A_PAGE: Final = 1_000


async def read_durations(database: Database, video_ids: Sequence[str]) -> dict[str, float]:
    """Seconds, by video; those whose duration is not known are not among them.

    Of a deleted video nothing is kept, so its duration is not known either.

    Raises:
        UnavailableError: When the database is down or late.
    """
    c = videos.c
    query = sa.select(c.video_id, c.duration_s).where(c.duration_s > 0.0)
    found: dict[str, float] = {}
    for start in range(0, len(video_ids), _VIDEOS_A_PAGE):
        page = video_ids[start : start + _VIDEOS_A_PAGE]
        rows = await database.rows(query.where(c.video_id.in_(page)))
        found |= {row.video_id: row.duration_s for row in rows}
    return found
