"""Monthly partitions on PostgreSQL: made ahead of the rows, dropped whole by retention."""

import datetime as dt
import logging

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keek_server.errors import UnavailableError
from keek_server.storage.database import ADVISORY_LOCK, Database

logger = logging.getLogger(__name__)

_SECOND_US = 1_000_000


def month_start_us(time_us: int) -> int:
    """The first microsecond of the month (UTC) that a time lies in."""
    month = dt.datetime.fromtimestamp(time_us // _SECOND_US, dt.UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return int(month.timestamp()) * _SECOND_US


def next_month_us(start_us: int) -> int:
    """The start of the month behind the one that starts at `start_us`."""
    return month_start_us(start_us + 31 * 24 * 3600 * _SECOND_US)


class MonthlyPartitions:
    """The partitions of one table. SQLite has none: there, `prune` deletes rows in bounded batches."""

    def __init__(self, database: Database, time: sa.Column[int]) -> None:
        """
        Args:
            database: Where the table is.
            time: What its table is partitioned by: microseconds that grow with its column `seq`.
        """
        self._database = database
        self._table = time.table
        self._time = time
        self._unique = [column for column in time.table.columns if column.unique]
        self._covered: set[int] = set()

    async def cover(self, time_us: int) -> None:
        """Makes sure that rows of this month have a partition, and makes the next one's where it can.

        Raises:
            UnavailableError: When the database is down or late.
        """
        if self._database.is_sqlite:
            return
        start_us = month_start_us(time_us)
        if start_us in self._covered:
            return
        await self._create(start_us)
        self._covered.add(start_us)
        try:
            await self._create(next_month_us(start_us))
        except UnavailableError as error:
            # A long reader, a backup perhaps, is in the way. There is a month's time.
            logger.warning("the next partition of %s waits: %s", self._table.name, error)

    async def prune(self, connection: AsyncConnection, before_us: int) -> int:
        """Removes one bounded piece of what lies in whole months before `before_us`.

        Returns:
            The highest sequence number removed; 0 when there is nothing to remove any more.
        """
        before_us = month_start_us(before_us)
        return await (self._delete if self._database.is_sqlite else self._drop)(connection, before_us)

    async def _create(self, start_us: int) -> None:
        name = self._name(start_us)
        async with self._database.write() as connection:
            # Making one locks the whole table: not for one that is there.
            if (await connection.execute(_EXISTS, {"name": name})).scalar_one():
                return
            await self._lock(connection)
            for statement in self._creation(name, start_us):
                await connection.execute(sa.text(statement))

    async def _lock(self, connection: AsyncConnection) -> None:
        """One server at a time; and whoever would wait for a table makes all others wait behind it."""
        await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT_MS}ms'"))
        await connection.execute(ADVISORY_LOCK, {"lock": _PARTITIONS_LOCK})

    def _name(self, start_us: int) -> str:
        return f"{self._table.name}_{_month(start_us):%Y_%m}"

    def _creation(self, name: str, start_us: int) -> list[str]:
        bounds = f"FROM ({start_us}) TO ({next_month_us(start_us)})"
        # A unique index of the whole table would have to hold the time, too.
        return [
            f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {self._table.name} FOR VALUES {bounds}",
            *(
                f"CREATE UNIQUE INDEX IF NOT EXISTS uq_{name}_{column.name} ON {name} ({column.name})"
                for column in self._unique
            ),
        ]

    async def _drop(self, connection: AsyncConnection, before_us: int) -> int:
        await self._lock(connection)
        partitions = await connection.execute(_PARTITIONS, {"parent": self._table.name})
        limit = self._name(before_us)
        for name in sorted(partitions.scalars()):
            if name >= limit:
                break
            last = (await connection.execute(sa.text(f"SELECT max(seq) FROM {name}"))).scalar_one()  # noqa: S608
            await connection.execute(sa.text(f"DROP TABLE {name}"))
            if last:
                return int(last)
        return 0

    async def _delete(self, connection: AsyncConnection, before_us: int) -> int:
        seq = self._table.c.seq
        oldest = sa.select(seq, self._time).order_by(seq).limit(_ROWS_A_DELETE).subquery()
        found = sa.select(sa.func.max(oldest.c.seq)).where(oldest.c[self._time.name] < before_us)
        if last := (await connection.execute(found)).scalar_one():
            await connection.execute(self._table.delete().where(seq <= last))
        return int(last or 0)


_ROWS_A_DELETE = 5_000
_LOCK_TIMEOUT_MS = 1_000
_PARTITIONS_LOCK = 0x70617274  # "part": the advisory lock of whoever makes or drops partitions
_EXISTS = sa.text("SELECT to_regclass(:name) IS NOT NULL")
_PARTITIONS = sa.text(
    "SELECT child.relname FROM pg_inherits"
    " JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent"
    " WHERE parent.relname = :parent AND pg_table_is_visible(parent.oid)"
)


def _month(start_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(start_us // _SECOND_US, dt.UTC)
