"""The log read out, with every column of it, in bounded pages."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from keek_server.interactions.log import InteractionLog
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions as table

_SEQS_A_PAGE = 20_000


class ExportedInteraction(NamedTuple):
    """One row of the log, its fields named as the columns of the table."""

    seq: int
    event_id: UUID
    user_id: str
    video_id: str
    kind: int
    """InteractionKind."""
    event_time_us: int
    record_time_us: int
    region: str
    tags: list[str]
    watched_ms: int | None
    """Of a view or a skip; None when unknown."""


@dataclass(frozen=True, slots=True)
class ExportPage:
    """The next rows, and how far the reading is."""

    rows: list[ExportedInteraction]
    seq: int
    """The log was read up to here."""
    last_seq: int
    """Where the reading ends."""


async def read_pages(database: Database, *, since_us: int = 0) -> AsyncIterator[ExportPage]:
    """What the log holds at this moment, in its order; one bounded transaction a page.

    Args:
        database: Holds the log.
        since_us: Only rows that were recorded then or later.

    Raises:
        UnavailableError: When the database is down or late.
    """
    extent = await InteractionLog(database).extent()
    # Windows of sequence numbers: with a LIMIT, the first page would search the whole log for the
    # first row since then, in one transaction.
    for after in range(extent.pruned_seq, extent.last_seq, _SEQS_A_PAGE):
        last = min(after + _SEQS_A_PAGE, extent.last_seq)
        window = {"after": after, "last": last, "since_us": since_us}
        async with database.read() as connection:
            found = (await connection.execute(_WINDOW, window)).all()
        yield ExportPage([ExportedInteraction(*row) for row in found], last, extent.last_seq)


_WINDOW = (
    sa.select(*(table.c[name] for name in ExportedInteraction._fields))
    .where(table.c.seq > sa.bindparam("after"), table.c.seq <= sa.bindparam("last"))
    .where(table.c.record_time_us >= sa.bindparam("since_us"))
    .order_by(table.c.seq)
)
