"""The durable log: SQL is the truth about what users did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keek_server.batching import Batcher
from keek_server.clock import now_us
from keek_server.interactions.kinds import InteractionKind
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions as table

_MAX_ROWS = 1000
_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Interaction:
    """One feedback event, as the client sent it."""

    event_id: UUID
    user_id: str
    video_id: str
    kind: InteractionKind
    event_time_us: int


@dataclass(frozen=True, slots=True)
class LoggedInteraction:
    """One row of the log."""

    seq: int
    user_id: str
    video_id: str
    kind: InteractionKind
    event_time_us: int


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of interactions that were appended together."""

    created: tuple[bool, ...]
    """Per interaction: False when its event_id was in the log already."""
    seq: int
    """All of them stand in the log at this sequence number or before."""


class InteractionLog:
    """Appends by group commit; reads in commit order."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._batcher: Batcher[Sequence[Interaction], Appended] = Batcher(
            self._commit, max_weight=_MAX_ROWS, max_waiting=_MAX_WAITING, weigh=len
        )

    async def append(self, events: Sequence[Interaction]) -> Appended:
        """Stores all of `events` or none, and returns after their transaction committed.

        Raises:
            UnavailableError: When the database is down or late.
        """
        return await self._batcher.submit(events)

    async def read(self, after_seq: int, limit: int) -> list[LoggedInteraction]:
        """The next rows of the log behind `after_seq`, in commit order."""
        query = _COLUMNS.where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
        return await self._rows(query)

    async def history(self, user_id: str, limit: int) -> list[LoggedInteraction]:
        """A user's latest interactions, newest last."""
        query = _COLUMNS.where(table.c.user_id == user_id).order_by(table.c.seq.desc()).limit(limit)
        return (await self._rows(query))[::-1]

    async def last_seq(self) -> int:
        """The sequence number of the newest row; 0 when the log is empty."""
        async with self._database.read() as connection:
            return await _last_seq(connection)

    async def aclose(self) -> None:
        """Waits for what is being committed."""
        await self._batcher.aclose()

    async def _rows(self, query: sa.Select[Any]) -> list[LoggedInteraction]:
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [LoggedInteraction(r[0], r[1], r[2], InteractionKind(r[3]), r[4]) for r in rows]

    async def _commit(self, batch: list[Sequence[Interaction]]) -> list[Appended]:
        record_time_us = now_us()
        rows = [_row(event, record_time_us) for events in batch for event in events]
        async with self._database.write() as connection:
            await self._database.lock_log(connection)
            before = await _last_seq(connection)
            await connection.execute(self._database.insert(table).on_conflict_do_nothing(), rows)
            # Nobody else appends before this transaction ends: what stands behind `before` is ours.
            appended = sa.select(table.c.event_id, table.c.seq).where(table.c.seq > before)
            new = {event_id: seq for event_id, seq in (await connection.execute(appended)).all()}  # noqa: C416
        seq = max(new.values(), default=before)
        return [_appended(events, new, seq) for events in batch]


_COLUMNS = sa.select(table.c.seq, table.c.user_id, table.c.video_id, table.c.kind, table.c.event_time_us)


async def _last_seq(connection: AsyncConnection) -> int:
    return (await connection.execute(sa.select(sa.func.max(table.c.seq)))).scalar_one() or 0


def _row(event: Interaction, record_time_us: int) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "video_id": event.video_id,
        "kind": int(event.kind),
        "event_time_us": event.event_time_us,
        "record_time_us": record_time_us,
    }


def _appended(events: Sequence[Interaction], new: dict[UUID, int], seq: int) -> Appended:
    # Popped, so that of two copies in one batch the first alone counts as created.
    return Appended(tuple(new.pop(event.event_id, None) is not None for event in events), seq)
