"""The one statement that appends to the log, in the dialect of each database.

Both take a whole batch as few parameters, skip what is there already and tell what was new, so that
a batch costs the same few round trips whatever its size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa

from keek_server.interactions.kinds import InteractionKind


# Not frozen: setting the fields of a frozen one costs as much as all else on their way to the log.
@dataclass(slots=True)
class Interaction:
    """One feedback event."""

    event_id: str
    """A UUID as 32 hexadecimal digits in lower case."""
    user_id: str
    video_id: str
    kind: InteractionKind
    event_time_us: int
    region: str = ""
    """Where it happened; empty when unknown."""
    tags: tuple[str, ...] = ()
    """The video's tags when it happened."""
    watched_ms: int | None = None
    """How long the video was watched, of a view or a skip; None when unknown."""


def append(
    connection: sa.Connection, events: Sequence[Interaction], record_time_us: int
) -> tuple[dict[str, int], int]:
    """Appends those of `events` that the log does not hold, in their order.

    The caller's transaction holds the log's lock, and commits.

    Returns:
        The sequence number of each event that was new, by event_id; and the log's last one.
    """
    insert = _insert_sqlite if connection.dialect.name == "sqlite" else _insert_postgresql
    return insert(connection, events, record_time_us)


def _insert_sqlite(
    connection: sa.Connection, events: Sequence[Interaction], record_time_us: int
) -> tuple[dict[str, int], int]:
    before = connection.execute(_LAST).scalar_one() or 0
    rows = [(event.event_id, *_values(event)) for event in events]
    parameters = {"rows": json.dumps(rows), "record_time_us": record_time_us}
    inserted = connection.execute(_SQLITE, parameters)
    if inserted.rowcount == len(events):
        # Nobody else appends, and nothing was skipped: the numbers follow each other.
        last: int = inserted.lastrowid
        return _numbered(events, last), last
    new = {event_id: seq for event_id, seq in connection.execute(_BEHIND, {"before": before})}  # noqa: C416
    return new, max(new.values(), default=before)


def _insert_postgresql(
    connection: sa.Connection, events: Sequence[Interaction], record_time_us: int
) -> tuple[dict[str, int], int]:
    columns = zip(*((event.event_id, *_values(event)) for event in events), strict=True)
    parameters = dict(zip(_COLUMNS, map(list, columns), strict=True))
    inserted = connection.execute(_POSTGRESQL, {**parameters, "record_time_us": record_time_us})
    count, first, last = inserted.one()
    if count == len(events) == last - first + 1:
        return _numbered(events, last), last
    if count == 0:
        return {}, connection.execute(_LAST).scalar_one() or 0
    new = {event_id.hex: seq for event_id, seq in connection.execute(_BEHIND, {"before": first - 1})}
    return new, last


def _numbered(events: Sequence[Interaction], last: int) -> dict[str, int]:
    """The numbers of events that follow each other, up to `last`."""
    return {event.event_id: seq for seq, event in enumerate(events, last - len(events) + 1)}


def _values(event: Interaction) -> tuple[str, str, int, int, str, str, int | None]:
    return (
        event.user_id,
        event.video_id,
        int(event.kind),
        event.event_time_us,
        event.region,
        _json_of(event.tags),
        event.watched_ms,
    )


@lru_cache(maxsize=100_000)
def _json_of(tags: tuple[str, ...]) -> str:
    """Of few videos there are many interactions."""
    return json.dumps(tags)


_COLUMNS = ("event_id", "user_id", "video_id", "kind", "event_time_us", "region", "tags", "watched_ms")
_LAST = sa.text("SELECT max(seq) FROM interactions")
_BEHIND = sa.text("SELECT event_id, seq FROM interactions WHERE seq > :before")

# "WHERE true": without it, SQLite reads ON as part of a join.
_SQLITE = sa.text(
    "INSERT INTO interactions"
    " (event_id, user_id, video_id, kind, event_time_us, region, tags, watched_ms, record_time_us)"
    " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,"
    " value ->> 7, :record_time_us FROM json_each(:rows) WHERE true"
    " ON CONFLICT DO NOTHING"
)

# Each partition has a unique index of event_id, and ON CONFLICT sees the one that the row goes to;
# the others are asked by the subquery. Nobody appends in between: the log's lock is held. NOT EXISTS
# would say the same, and may be planned as a join that reads the whole log; a subquery with a LIMIT
# asks the indexes.
_POSTGRESQL = sa.text(
    "WITH new AS (INSERT INTO interactions"
    " (event_id, user_id, video_id, kind, event_time_us, region, tags, watched_ms, record_time_us)"
    " SELECT event_id, user_id, video_id, kind, event_time_us, region, CAST(tags AS json), watched_ms,"
    " CAST(:record_time_us AS bigint)"
    " FROM unnest(CAST(:event_id AS uuid[]), CAST(:user_id AS text[]), CAST(:video_id AS text[]),"
    " CAST(:kind AS smallint[]), CAST(:event_time_us AS bigint[]), CAST(:region AS text[]),"
    " CAST(:tags AS text[]), CAST(:watched_ms AS integer[])) WITH ORDINALITY"
    " AS sent (event_id, user_id, video_id, kind, event_time_us, region, tags, watched_ms, place)"
    " WHERE (SELECT 1 FROM interactions AS old WHERE old.event_id = sent.event_id LIMIT 1) IS NULL"
    " ORDER BY place ON CONFLICT DO NOTHING RETURNING seq)"
    " SELECT count(*), min(seq), max(seq) FROM new"
)
