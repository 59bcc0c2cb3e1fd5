"""The SQL database: SQLite on one machine, PostgreSQL by URL."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from keek_server.errors import SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.startup import wait_until_ready
from keek_server.storage import tables
from keek_server.storage.encoding import CODEC
from keek_server.storage.hurried import HurriedReads, Parameters, Query
from keek_server.storage.migrate import upgrade
from keek_server.storage.sqlite import WRITING, SqliteThread, sqlite_engine

T = TypeVar("T")

_WRITE_LOCK = 0x6B65656B  # "keek": the advisory lock that puts commits of the log in one order
_PLAN_LOCK = 0x706C616E  # "plan": the same for changes of what is served
ADVISORY_LOCK = sa.text("SELECT pg_advisory_xact_lock(:lock)")
"""Held until the transaction ends; PostgreSQL alone has them."""
_IDLE_TRANSACTION_MS = 15_000
_SCHEMA_S = 600.0
"""A step of the schema may have to write a long log anew, and a busy machine is slow to read the steps."""


class Database:
    """Transactions with a deadline; a database that is down raises UnavailableError."""

    def __init__(
        self,
        engine: AsyncEngine,
        writer: SqliteThread | None,
        reader: SqliteThread | None,
        *,
        deadline_s: float,
        read_deadline_s: float,
    ) -> None:
        self.engine = engine
        self._writer = writer
        self._reader = reader
        self._deadline_s = deadline_s
        # One statement needs no transaction around it, which PostgreSQL is told of twice.
        self._alone = engine if writer else engine.execution_options(isolation_level="AUTOCOMMIT")
        self.hurried = HurriedReads(self._read_alone, deadline_s=read_deadline_s)
        """For feeds."""
        self.is_sqlite = writer is not None
        # SQLite has one writer: who waits here is woken at once, who waits there sleeps and tries.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with self._translated(), self.engine.connect() as connection:
            yield connection

    async def rows(self, query: Query, parameters: Parameters | None = None) -> Sequence[Any]:
        """What a query gives, in a transaction of its own.

        Raises:
            UnavailableError: When the database is down or late.
        """
        return await self.look(lambda connection: connection.execute(query, parameters).all())

    async def look(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work`, which reads a little, in a transaction: as `transact`, for what is read often.

        Raises:
            UnavailableError: When the database is down or late.
        """
        if self._reader is None:
            async with self.read() as connection:
                return await connection.run_sync(work)
        async with self._translated():
            return await self._reader.run(work)

    async def _read_alone(self, query: Query, parameters: Parameters | None) -> Sequence[Any]:
        async with self._translated(), self._alone.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query, parameters)).all()
            return rows

    @asynccontextmanager
    async def write(self, *, deadline_s: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits when the block ends, and rolls back when it raises.

        Args:
            deadline_s: For all of it; by default that of any transaction.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._translated(deadline_s))
            if self.is_sqlite:
                await stack.enter_async_context(self._turn)
            connection = await stack.enter_async_context(self.engine.connect())
            if self.is_sqlite:
                # Taking the write lock at once: a later upgrade of a read lock can fail as busy.
                connection = await connection.execution_options(**WRITING)
            async with connection.begin():
                yield connection

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction that commits when it returns, and rolls back when it raises.

        For what is done often: on SQLite all of it is one step of a thread of its own, where `write`
        needs one for each statement.

        Raises:
            UnavailableError: When the database is down or late; it may still commit.
        """
        if self._writer is None:
            async with self.write() as connection:
                return await connection.run_sync(work)
        async with self._translated(), self._turn:
            return await self._writer.run(work)

    def lock_log(self, connection: sa.Connection) -> None:
        """Makes this transaction the only one that appends to the log until it ends.

        So rows become visible in the order of their sequence numbers, and a reader
        that goes on from the highest number it saw skips nothing.
        """
        if not self.is_sqlite:
            connection.execute(ADVISORY_LOCK, {"lock": _WRITE_LOCK})

    def lock_plan(self, connection: sa.Connection) -> None:
        """Makes this transaction the only one that changes the plan of releases until it ends."""
        if not self.is_sqlite:
            connection.execute(ADVISORY_LOCK, {"lock": _PLAN_LOCK})

    def insert(self, table: sa.Table) -> Any:
        """The dialect's INSERT, which knows ON CONFLICT."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def upsert(self, table: sa.Table, *, keep: Collection[str] = (), **columns: Any) -> Any:
        """INSERT that replaces a row of the same primary key.

        Args:
            table: Where to.
            keep: Columns that a row that is there keeps.
            columns: Columns that it gets something else in than the new row has.
        """
        insert = self.insert(table)
        key = table.primary_key.columns
        new = {c.name: insert.excluded[c.name] for c in table.c if c.name not in key and c.name not in keep}
        return insert.on_conflict_do_update(index_elements=list(key), set_=new | columns)

    @asynccontextmanager
    async def _translated(self, deadline_s: float | None = None) -> AsyncIterator[None]:
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError as error:
            raise UnavailableError(f"the database took longer than {limit_s:g} s") from error
        except _MISTAKES:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, *_CONNECTING, OSError) as error:
            if _is_bad_value(error):
                raise
            raise UnavailableError("the database is not reachable") from error


# A fault of a statement or of its values: the same again would fail again.
_MISTAKES = (sa.exc.ProgrammingError, sa.exc.IntegrityError, sa.exc.DataError, sa.exc.NotSupportedError)
# What asyncpg raises while it connects, SQLAlchemy passes on as it is.
_CONNECTING = (asyncpg.PostgresError, asyncpg.InterfaceError)


def _is_bad_value(error: Exception) -> bool:
    """PostgreSQL's class 22, which SQLAlchemy does not tell from the rest."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None)).startswith("22")


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Connects, brings the schema up to date, and disposes of the pool at the end.

    Raises:
        SetupError: When the database cannot be reached within `startup_timeout_s`, or its schema
            is of another version.
    """
    engine, threads = _engines(settings.database_url)
    database = Database(
        engine, *threads, deadline_s=settings.sql_deadline_s, read_deadline_s=settings.sql_read_deadline_s
    )
    try:
        await _prepare(database, settings)
        yield database
    finally:
        await database.hurried.settle()
        await engine.dispose()
        for thread in threads:
            if thread is not None:
                thread.close()


def _engines(url: str) -> tuple[AsyncEngine, tuple[SqliteThread | None, SqliteThread | None]]:
    """The engine, and the threads that write and read where there are such."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        threads = SqliteThread(parsed, "sqlite-writer", WRITING), SqliteThread(parsed, "sqlite-reader")
        return sqlite_engine(parsed), threads
    # A server that vanishes in a transaction must not keep the log's lock.
    limits = {"server_settings": {"idle_in_transaction_session_timeout": str(_IDLE_TRANSACTION_MS)}}
    engine = create_async_engine(url, connect_args=limits, **CODEC)
    sa.event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine, (None, None)


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """For one that the database has closed, which the driver knows by itself, the pool gives another.

    SQLAlchemy's `pool_pre_ping` asks the database, in a transaction: three round trips before each of ours.
    """
    if connection.driver_connection.is_closed():
        raise sa.exc.DisconnectionError


async def _prepare(database: Database, settings: Settings) -> None:
    shown = sa.make_url(settings.database_url).render_as_string(hide_password=True)

    async def check() -> bool:
        try:
            async with database.read():
                return True
        except UnavailableError as error:
            # Callers are not told, but who starts the server is.
            raise UnavailableError(_reason(error)) from error

    await wait_until_ready(
        f"database at {shown} (KEEK_DATABASE_URL)",
        check,
        (UnavailableError,),
        timeout_s=settings.startup_timeout_s,
    )
    try:
        async with database.write(deadline_s=_SCHEMA_S) as connection:
            await connection.run_sync(database.lock_log)
            await connection.run_sync(upgrade)
            if (await connection.execute(sa.select(tables.log_identity.c.log_id))).first() is None:
                identity = {"log_id": uuid.uuid4().hex, "pruned_seq": 0}
                await connection.execute(tables.log_identity.insert().values(identity))
    except (UnavailableError, SetupError, sa.exc.DBAPIError) as error:
        reason = _reason(error)
        raise SetupError(f"the database at {shown} cannot be used: {reason} (KEEK_DATABASE_URL)") from error


def _reason(error: Exception) -> str:
    """The driver's own words, in one line; SQLAlchemy's would show statements and values. A deadline that
    has passed has none."""
    cause = error.__cause__ if isinstance(error, UnavailableError) and error.__cause__ else error
    return (str(getattr(cause, "orig", cause)) or str(error)).partition("\n")[0]
