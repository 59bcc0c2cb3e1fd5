"""The one statement that appends to the log, in the dialect of each database.

Both take a whole batch as few parameters, skip what is there already and return what was new,
so that a batch costs one round trip whatever its size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keek_server.interactions.kinds import InteractionKind


@dataclass(frozen=True, slots=True)
class Interaction:
    """One feedback event."""

    event_id: UUID
    user_id: str
    video_id: str
    kind: InteractionKind
    event_time_us: int
    region: str = ""
    """Where it happened; empty when unknown."""
    tags: Sequence[str] = ()
    """The video's tags when it happened."""


async def append(
    connection: AsyncConnection, events: Sequence[Interaction], record_time_us: int
) -> dict[UUID, int]:
    """Appends those of `events` that the log does not hold, in their order.

    The caller's transaction holds the log's lock, and commits.

    Returns:
        The sequence number of each event that was new, by event_id.
    """
    if connection.dialect.name == "sqlite":
        rows = [(event.event_id.hex, *_values(event)) for event in events]
        parameters: dict[str, object] = {"rows": json.dumps(rows), "record_time_us": record_time_us}
        result = await connection.execute(_SQLITE, parameters)
        return {UUID(hex=event_id): seq for event_id, seq in result.all()}
    columns = zip(*((event.event_id, *_values(event)) for event in events), strict=True)
    parameters = dict(zip(_COLUMNS, map(list, columns), strict=True))
    result = await connection.execute(_POSTGRESQL, {**parameters, "record_time_us": record_time_us})
    return {event_id: seq for event_id, seq in result.all()}  # noqa: C416


def _values(event: Interaction) -> tuple[str, str, int, int, str, str]:
    return (
        event.user_id,
        event.video_id,
        int(event.kind),
        event.event_time_us,
        event.region,
        json.dumps(event.tags) if event.tags else "[]",
    )


_COLUMNS = ("event_id", "user_id", "video_id", "kind", "event_time_us", "region", "tags")

# "WHERE true": without it, SQLite reads ON as part of a join.
_SQLITE = sa.text(
    "INSERT INTO interactions"
    " (event_id, user_id, video_id, kind, event_time_us, region, tags, record_time_us)"
    " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,"
    " :record_time_us FROM json_each(:rows) WHERE true"
    " ON CONFLICT DO NOTHING RETURNING event_id, seq"
)

# Each partition has a unique index of event_id, and ON CONFLICT sees the one that the row goes to;
# the earlier ones are asked by NOT EXISTS. Nobody appends in between: the log's lock is held.
_POSTGRESQL = sa.text(
    "INSERT INTO interactions"
    " (event_id, user_id, video_id, kind, event_time_us, region, tags, record_time_us)"
    " SELECT event_id, user_id, video_id, kind, event_time_us, region, CAST(tags AS json),"
    " CAST(:record_time_us AS bigint)"
    " FROM unnest(CAST(:event_id AS uuid[]), CAST(:user_id AS text[]), CAST(:video_id AS text[]),"
    " CAST(:kind AS smallint[]), CAST(:event_time_us AS bigint[]), CAST(:region AS text[]),"
    " CAST(:tags AS text[])) WITH ORDINALITY"
    " AS new (event_id, user_id, video_id, kind, event_time_us, region, tags, place)"
    " WHERE NOT EXISTS (SELECT FROM interactions AS old WHERE old.event_id = new.event_id)"
    " ORDER BY place ON CONFLICT DO NOTHING RETURNING event_id, seq"
)
