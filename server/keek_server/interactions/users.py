"""What the projection knows of users, read from the log: for feeds without Redis."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa

from keek_server.batching import Batcher
from keek_server.interactions.history import History, HistoryEntry
from keek_server.interactions.kinds import KINDS
from keek_server.interactions.projection import UserState
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions as table

_MAX_BATCH: Final = 16
_MAX_WAITING: Final = 4096


class LoggedUsers:
    """Reads the latest interactions of users; one query for all who wait."""

    def __init__(self, database: Database, *, history_limit: int, seen_limit: int) -> None:
        """
        Args:
            database: Holds the log.
            history_limit: The most interactions of a history.
            seen_limit: The latest interactions whose videos count as seen.
        """
        self._hurried = database.hurried
        self._history_limit = history_limit
        self._seen_limit = seen_limit
        self._batcher: Batcher[str, UserState] = Batcher(
            self._read, max_weight=_MAX_BATCH, max_waiting=_MAX_WAITING, max_delay_s=self._hurried.deadline_s
        )

    async def user(self, user_id: str) -> UserState:
        """A user's history and seen videos; both empty for a user who is not known.

        Raises:
            UnavailableError: When the database is down or late; at once while it is known to be.
            OverloadedError: When too many wait for it.
        """
        self._hurried.check(lambda: self._batcher.submit(user_id))
        return await self._batcher.submit(user_id)

    async def _read(self, user_ids: list[str]) -> Sequence[UserState]:
        asked = list(dict.fromkeys(user_ids))
        query = _latest(len(asked), max(self._history_limit, self._seen_limit))
        rows = await self._hurried.read(query, {_name(place): id_ for place, id_ in enumerate(asked)})
        latest: defaultdict[str, list[HistoryEntry]] = defaultdict(list)
        for _, user_id, video_id, kind, event_time_us in sorted(rows, key=_seq, reverse=True):
            latest[user_id].append(HistoryEntry(video_id, KINDS[kind], event_time_us))
        return [self._state(latest[user_id]) for user_id in user_ids]

    def _state(self, latest: Sequence[HistoryEntry]) -> UserState:
        """Of a user's interactions, newest first."""
        history = History.of(latest[: self._history_limit][::-1])
        return UserState(history, frozenset(entry.video_id for entry in latest[: self._seen_limit]))


_seq = itemgetter(0)


@lru_cache(_MAX_BATCH)
def _latest(count: int, limit: int) -> sa.CompoundSelect[Any]:
    """The latest rows of so many users, each by its own walk through the index of users."""
    c = table.c
    columns = (c.seq, c.user_id, c.video_id, c.kind, c.event_time_us)
    walks = [
        sa.select(*columns).where(c.user_id == sa.bindparam(_name(place))).order_by(c.seq.desc()).limit(limit)
        for place in range(count)
    ]
    return sa.union_all(*(sa.select(walk.subquery()) for walk in walks))


def _name(place: int) -> str:
    return f"user_{place}"
