"""What users did last, read from the log."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import KINDS
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions


async def read_histories(
    database: Database, user_ids: Sequence[str], length: int
) -> dict[str, list[HistoryEntry]]:
    """Each user's latest interactions, at most `length`, newest last; without users who have none."""
    c = interactions.c
    number = sa.func.row_number().over(partition_by=c.user_id, order_by=c.seq.desc()).label("number")
    ranked = (
        sa.select(c.user_id, c.video_id, c.kind, c.event_time_us, c.seq, number)
        .where(c.user_id.in_(user_ids))
        .subquery()
    )
    query = sa.select(ranked).where(ranked.c.number <= length).order_by(ranked.c.user_id, ranked.c.seq)
    async with database.engine.connect() as connection:
        rows: list[Any] = list((await connection.execute(query)).all())
    return {
        user_id: [HistoryEntry(row.video_id, KINDS[row.kind], row.event_time_us) for row in own]
        for user_id, own in groupby(rows, itemgetter(0))
    }
