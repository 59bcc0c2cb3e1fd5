"""Held-out requests: what users who were active lately did next, taken from the tail of the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.log import InteractionLog
from keek_server.retrieval.ids import hash_id
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions
from keek_training.config import TrainConfig
from keek_training.histories import read_histories

POSITIVE: Final = tuple(kind for kind, weight in TrainConfig().kind_weights.items() if weight > 0)
"""Kinds that training takes as targets."""

_TAIL_ROWS: Final = 1_000_000
"""Rows of the log that are looked through for users."""
_DRAWN_FROM: Final = 10
"""Times as many users as are wanted: the last ones alone may all be of one minute."""
_ROWS_A_USER: Final = 400
"""Twice the longest history: what a user did before that counts as forgotten."""
_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Request:
    """The moment before a user met a video that they then took to."""

    user_id: str
    history: tuple[HistoryEntry, ...]
    """What came before, newest last; at least one."""
    target: str
    """The video; it is not in the history."""
    now_us: int
    """When that was."""


async def held_out_requests(database: Database, limit: int) -> list[Request]:
    """One request of each of at most `limit` users with two positive interactions or more.

    The same log gives the same users.
    """
    user_ids = await _users(database, limit)
    requests: list[Request] = []
    for start in range(0, len(user_ids), _BATCH):
        histories = await read_histories(database, user_ids[start : start + _BATCH], _ROWS_A_USER)
        found = (request_of(user_id, entries) for user_id, entries in histories.items())
        requests += (request for request in found if request is not None)
    return requests


def request_of(user_id: str, entries: Sequence[HistoryEntry]) -> Request | None:
    """The last time that a user met a new video and took to it.

    A video that they had met before would be found by its own vector in the history, and a feed leaves
    it out. None when there is no such video with anything before it.
    """
    first_met: dict[str, int] = {}
    for place, entry in enumerate(entries):
        first_met.setdefault(entry.video_id, place)
    for place in sorted(first_met.values(), reverse=True):
        entry = entries[place]
        if place > 0 and entry.kind in POSITIVE:
            return Request(user_id, tuple(entries[:place]), entry.video_id, entry.event_time_us)
    return None


async def _users(database: Database, limit: int) -> list[str]:
    last = (await InteractionLog(database).extent()).last_seq
    c = interactions.c
    query = (
        sa.select(c.user_id)
        .where(c.seq > last - _TAIL_ROWS, c.kind.in_([int(kind) for kind in POSITIVE]))
        .group_by(c.user_id)
        .having(sa.func.count() >= 2)
        .order_by(sa.func.max(c.seq).desc())
        .limit(limit * _DRAWN_FROM)
    )
    # The tail may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        user_ids = list((await connection.execute(query)).scalars())
    return sorted(user_ids, key=hash_id)[:limit]
