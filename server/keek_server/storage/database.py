"""The SQL database: SQLite on one machine, PostgreSQL by URL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from keek_server.errors import SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.storage import tables

_WRITE_LOCK = 0x6B65656B  # "keek": the advisory lock that puts commits of the log in one order


class Database:
    """Transactions with a deadline; a database that is down raises UnavailableError."""

    def __init__(self, engine: AsyncEngine, *, deadline_s: float) -> None:
        self.engine = engine
        self._deadline_s = deadline_s
        self.is_sqlite = engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with self._translated(), self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, and rolls back when it raises."""
        async with self._translated(), self.engine.connect() as connection:
            if self.is_sqlite:
                # Taking the write lock at once: a later upgrade of a read lock can fail as busy.
                connection = await connection.execution_options(keek_begin="BEGIN IMMEDIATE")
            async with connection.begin():
                yield connection

    async def lock_log(self, connection: AsyncConnection) -> None:
        """Makes this transaction the only one that appends to the log until it ends.

        So rows become visible in the order of their sequence numbers, and a reader
        that goes on from the highest number it saw skips nothing.
        """
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))

    def insert(self, table: sa.Table) -> Any:
        """The dialect's INSERT, which knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError as error:
            raise UnavailableError(f"the database took longer than {self._deadline_s:g} s") from error
        except (sa.exc.OperationalError, sa.exc.InterfaceError, OSError) as error:
            raise UnavailableError("the database is not reachable") from error


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Connects, makes the tables that are missing, and disposes of the pool at the end.

    Raises:
        SetupError: When the database cannot be reached within `startup_timeout_s`.
    """
    engine = _engine(settings.database_url)
    database = Database(engine, deadline_s=settings.sql_deadline_s)
    try:
        await _prepare(database, settings)
        yield database
    finally:
        await engine.dispose()


async def read_log_id(database: Database) -> str:
    """The identity of this database's log, 32 hexadecimal digits."""
    async with database.read() as connection:
        return str((await connection.execute(sa.select(tables.log_identity.c.log_id))).scalar_one())


def _engine(url: str) -> AsyncEngine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_pre_ping=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, connect_args={"timeout": 5.0})
    sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is switched off: _begin_sqlite says BEGIN.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a commit is on the disk when it returns, also through a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "mmap_size=268435456"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("keek_begin", "BEGIN"))


async def _prepare(database: Database, settings: Settings) -> None:
    try:
        async with asyncio.timeout(settings.startup_timeout_s), database.write() as connection:
            await database.lock_log(connection)
            await connection.run_sync(tables.metadata.create_all)
            if (await connection.execute(sa.select(tables.log_identity.c.log_id))).first() is None:
                await connection.execute(tables.log_identity.insert().values(log_id=uuid.uuid4().hex))
    except (UnavailableError, TimeoutError) as error:
        shown = sa.make_url(settings.database_url).render_as_string(hide_password=True)
        cause = error.__cause__ or error
        raise SetupError(f"no database at {shown}: {cause} (KEEK_DATABASE_URL)") from error
