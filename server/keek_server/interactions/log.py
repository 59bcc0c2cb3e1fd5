"""The durable log: SQL is the truth about what users did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keek_server.batching import Batcher
from keek_server.clock import now_us
from keek_server.interactions.append import Interaction, append
from keek_server.interactions.kinds import KINDS
from keek_server.interactions.recent import RecentRows
from keek_server.interactions.rows import LoggedInteraction, tail_of
from keek_server.storage.database import Database
from keek_server.storage.partitions import MonthlyPartitions
from keek_server.storage.tables import interactions as table
from keek_server.storage.tables import log_identity

_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of interactions that were appended together."""

    created: tuple[bool, ...]
    """Per interaction: False when its event_id was in the log already."""
    seq: int
    """All of them stand in the log at this sequence number or before."""


@dataclass(frozen=True, slots=True)
class LogExtent:
    """What the log holds."""

    log_id: str
    pruned_seq: int
    """Rows up to here are gone by retention; 0 when none is."""
    last_seq: int
    """0 when there was never a row."""


class InteractionLog:
    """Appends by group commit; reads in commit order."""

    def __init__(self, database: Database, *, max_rows: int = 4000, max_delay_s: float = 5.0) -> None:
        """
        Args:
            database: Holds the log.
            max_rows: The most rows of one transaction.
            max_delay_s: The longest that events wait for their transaction to begin.
        """
        self._database = database
        self._recent = RecentRows()
        self._last_seq = 0
        self._partitions = MonthlyPartitions(database, table.c.record_time_us)
        self._batcher: Batcher[Sequence[Interaction], Appended] = Batcher(
            self.commit, max_weight=max_rows, max_waiting=_MAX_WAITING, max_delay_s=max_delay_s, weigh=len
        )

    async def append(self, events: Sequence[Interaction]) -> Appended:
        """Stores all of `events` or none, and returns after their transaction committed.

        What waits at the same time shares a transaction.

        Raises:
            UnavailableError: When the database is down or late.
        """
        return await self._batcher.submit(events)

    async def commit(self, batch: Sequence[Sequence[Interaction]]) -> list[Appended]:
        """Appends several lists of events in one transaction of their own.

        Raises:
            UnavailableError: When the database is down or late.
        """
        await self._partitions.cover(now_us())
        events = [event for events in batch for event in events]

        def work(connection: sa.Connection) -> tuple[dict[str, int], int, int]:
            self._database.lock_log(connection)
            # Behind the lock, so that it grows with the sequence numbers.
            record_time_us = now_us()
            return *append(connection, events, record_time_us), record_time_us

        new, seq, record_time_us = await self._database.transact(work)
        self._last_seq = seq
        if len(new) == len(events):
            self._recent.add([_logged(event, new[event.event_id], record_time_us) for event in events])
        return [_appended(events, new, seq) for events in batch]

    async def read(self, after_seq: int, limit: int) -> list[LoggedInteraction]:
        """The next rows of the log behind `after_seq`, in commit order.

        Without those that other servers appended since, perhaps, when this one appended some itself;
        they come with the next call.
        """
        recent = self._recent.after(after_seq, limit)
        if recent and (len(recent) == limit or recent[-1].seq == self._last_seq):
            return recent
        query = _COLUMNS.where(table.c.seq > after_seq).order_by(table.c.seq).limit(limit)
        return await self._rows(query)

    async def at(self, seq: int) -> LoggedInteraction | None:
        """The row with a number, as the database has it at this moment."""
        rows = await self._rows(_COLUMNS.where(table.c.seq == seq))
        return rows[0] if rows else None

    async def holds(self, seq: int, tail: str) -> bool:
        """Whether the row with a number still has this `tail_of`, or was pruned.

        In a log that was restored from a backup it may be another.
        """
        row = await self.at(seq)
        if row is None:
            return seq <= (await self.extent()).pruned_seq
        return tail_of(row) == tail

    async def history(self, user_id: str, limit: int) -> list[LoggedInteraction]:
        """A user's latest interactions, newest last."""
        query = _COLUMNS.where(table.c.user_id == user_id).order_by(table.c.seq.desc()).limit(limit)
        return (await self._rows(query))[::-1]

    async def extent(self) -> LogExtent:
        """What the log holds at this moment."""
        async with self._database.read() as connection:
            log_id, pruned_seq = (await connection.execute(_IDENTITY)).one()
            return LogExtent(log_id, pruned_seq, max(pruned_seq, await _last_seq(connection)))

    async def prune(self, before_us: int) -> bool:
        """Removes a bounded piece of the whole months before a time; False when none is left.

        Raises:
            UnavailableError: When the database is down or late.
        """
        async with self._database.write() as connection:
            pruned_seq = await self._partitions.prune(connection, before_us)
            if pruned_seq:
                await connection.execute(log_identity.update().values(pruned_seq=pruned_seq))
                self.forget_recent()
        return pruned_seq > 0

    def forget_recent(self) -> None:
        """Reads from the database alone, until there are new rows: what was kept may be gone from there."""
        self._recent.forget()

    async def aclose(self) -> None:
        """Waits for what is being committed."""
        await self._batcher.aclose()

    async def _rows(self, query: sa.Select[Any]) -> list[LoggedInteraction]:
        rows = await self._database.rows(query)
        return [
            LoggedInteraction(seq, user_id, video_id, KINDS[kind], event_us, record_us, region, tuple(tags))
            for seq, user_id, video_id, kind, event_us, record_us, region, tags in rows
        ]


_IDENTITY = sa.select(log_identity.c.log_id, log_identity.c.pruned_seq)
_COLUMNS = sa.select(
    table.c.seq,
    table.c.user_id,
    table.c.video_id,
    table.c.kind,
    table.c.event_time_us,
    table.c.record_time_us,
    table.c.region,
    table.c.tags,
)


async def _last_seq(connection: AsyncConnection) -> int:
    return (await connection.execute(sa.select(sa.func.max(table.c.seq)))).scalar_one() or 0


def _logged(event: Interaction, seq: int, record_time_us: int) -> LoggedInteraction:
    return LoggedInteraction(
        seq,
        event.user_id,
        event.video_id,
        event.kind,
        event.event_time_us,
        record_time_us,
        event.region,
        event.tags,
    )


def _appended(events: Sequence[Interaction], new: dict[str, int], seq: int) -> Appended:
    # Popped, so that of two copies in one batch the first alone counts as created.
    return Appended(tuple(new.pop(event.event_id, None) is not None for event in events), seq)
