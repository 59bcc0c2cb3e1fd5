"""SQLite: how its connections are set up, and the threads that write and read."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from keek_server.storage.encoding import CODEC

T = TypeVar("T")

WRITING: Final = {"keek_begin": "BEGIN IMMEDIATE"}
"""Execution options of a transaction that writes. It takes the write lock at once: a later upgrade
of a read lock can fail as busy."""

_BUSY_TIMEOUT_S = 5.0


def sqlite_engine(url: sa.URL) -> AsyncEngine:
    """An engine with durable commits; makes the folder of the file."""
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S}, **CODEC)
    _listen(engine.sync_engine)
    return engine


class SqliteThread:
    """One connection in a thread of its own, for whole transactions in one step."""

    def __init__(self, url: sa.URL, name: str, options: Mapping[str, str] | None = None) -> None:
        """
        Args:
            url: Of a file.
            name: Of the thread.
            options: Execution options of every transaction; by default it only reads.
        """
        self._options = options or {}
        self._engine = sa.create_engine(
            url.set(drivername="sqlite"),
            poolclass=sa.StaticPool,
            # Made by its thread and closed by another, never used by both at once.
            connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
            **CODEC,
        )
        _listen(self._engine)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction. One that is no longer waited for still ends by itself."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def close(self) -> None:
        """Waits for a transaction that is under way."""
        self._thread.shutdown()
        self._engine.dispose()

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        with self._engine.connect() as connection:
            connection = connection.execution_options(**self._options)
            with connection.begin():
                return work(connection)


def _listen(engine: sa.Engine) -> None:
    sa.event.listen(engine, "connect", _configure)
    sa.event.listen(engine, "begin", _begin)


def _configure(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is switched off: _begin says BEGIN.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a commit is on the disk when it returns, also through a power cut.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "mmap_size=268435456"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("keek_begin", "BEGIN"))
