"""What a database takes without Keek: a table like the log's, filled by the driver itself."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

import asyncpg
import sqlalchemy as sa

from keek_server.settings import Settings

RawRow = tuple[UUID, str, str, int, int, int, str, str, int | None]
"""event_id, user_id, video_id, kind, event_time_us, record_time_us, region, tags, watched_ms."""

_COLUMNS = "event_id, user_id, video_id, kind, event_time_us, record_time_us, region, tags, watched_ms"
_TABLE = "raw_interactions"


class RawTable(Protocol):
    """A table with the columns, the keys and the indexes of `interactions`."""

    async def insert(self, rows: Sequence[RawRow]) -> None:
        """Inserts rows in one transaction, and returns when it is on the disk."""
        ...


@asynccontextmanager
async def open_raw_table(settings: Settings) -> AsyncIterator[RawTable]:
    """Makes the table in the database of the settings."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        table = await asyncio.to_thread(_SqliteTable, url.database or "")
        try:
            yield table
        finally:
            table.close()
        return
    connection = await asyncpg.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, database=url.database
    )
    try:
        await _create_postgresql(connection)
        yield _PostgresTable(connection)
    finally:
        await connection.close()


class _SqliteTable:
    """By executemany of the standard library's driver, in a thread."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
        # As the server's own connections.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "mmap_size=268435456"):
            self._connection.execute(f"PRAGMA {pragma}")
        made = self._connection.execute(
            "SELECT sql FROM sqlite_master"
            " WHERE tbl_name = 'interactions' AND sql IS NOT NULL ORDER BY type DESC"
        )
        for (sql,) in made.fetchall():
            self._connection.execute(sql.replace("interactions", _TABLE))

    async def insert(self, rows: Sequence[RawRow]) -> None:
        await asyncio.to_thread(self._insert, rows)

    def close(self) -> None:
        self._connection.close()

    def _insert(self, rows: Sequence[RawRow]) -> None:
        values = "?, ?, ?, ?, ?, ?, ?, ?, ?"
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            f"INSERT INTO {_TABLE} ({_COLUMNS}) VALUES ({values})", ((row[0].hex, *row[1:]) for row in rows)
        )
        self._connection.execute("COMMIT")


class _PostgresTable:
    """By one INSERT of unnested arrays, the fastest of what needs no COPY."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def insert(self, rows: Sequence[RawRow]) -> None:
        await self._connection.execute(
            f"INSERT INTO {_TABLE} ({_COLUMNS}) SELECT e, u, v, k, t, r, g, j::json, w FROM unnest("
            "$1::uuid[], $2::text[], $3::text[], $4::smallint[], $5::bigint[], $6::bigint[], $7::text[],"
            " $8::text[], $9::integer[]) AS rows (e, u, v, k, t, r, g, j, w)",
            *map(list, zip(*rows, strict=True)),
        )


async def _create_postgresql(connection: asyncpg.Connection) -> None:
    await connection.execute(
        f"CREATE TABLE {_TABLE} (LIKE interactions INCLUDING ALL) PARTITION BY RANGE (record_time_us);"
        f"CREATE TABLE {_TABLE}_all PARTITION OF {_TABLE} DEFAULT;"
        f"CREATE UNIQUE INDEX ON {_TABLE}_all (event_id)"
    )
