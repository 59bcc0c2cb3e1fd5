"""Files that nothing names any more, remembered in SQL until they are gone from the store."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from keek_server.storage.database import Database
from keek_server.storage.tables import files_to_remove as table


class Removal(NamedTuple):
    """A file that must go."""

    seq: int
    url: str


def remove_later(connection: sa.Connection, urls: Iterable[str]) -> None:
    """Remembers files, in the transaction that makes them superfluous; empty URLs are none."""
    if rows := [{"url": url} for url in urls if url]:
        connection.execute(table.insert(), rows)


class Removals:
    """Reads and writes the table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, urls: Iterable[str]) -> None:
        """Remembers files in a transaction of its own."""
        await self._database.transact(lambda connection: remove_later(connection, urls))

    async def page(self, after_seq: int, limit: int) -> Sequence[Removal]:
        """The next ones behind `after_seq`."""
        query = sa.select(table.c.seq, table.c.url).where(table.c.seq > after_seq)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(table.c.seq).limit(limit))
            return [Removal(*row) for row in rows]

    async def done(self, removal: Removal) -> None:
        """Says that the file is gone."""
        delete = table.delete().where(table.c.seq == removal.seq)

        def work(connection: sa.Connection) -> None:
            connection.execute(delete)

        await self._database.transact(work)
