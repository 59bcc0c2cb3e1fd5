"""Connections that PostgreSQL has closed while they waited in the pool."""

import asyncio
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keek_server.embedded.postgres import EmbeddedPostgres
from keek_server.settings import Settings
from keek_server.storage.database import open_database

_PID = sa.text("SELECT pg_backend_pid()")


async def _pid(connection: AsyncConnection) -> int:
    pid: int = (await connection.execute(_PID)).scalar_one()
    return pid


async def test_they_are_replaced_before_anybody_asks_over_them(
    postgres: EmbeddedPostgres, postgres_url: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=postgres_url)
    async with open_database(settings) as database:
        async with database.read() as one, database.write() as other:
            closed = {await _pid(one), await _pid(other)}
            drivers = [(await each.get_raw_connection()).driver_connection for each in (one, other)]
        admin = await postgres.connect()
        try:
            for pid in closed:
                assert await admin.fetchval("SELECT pg_terminate_backend($1, 30000)", pid)
        finally:
            await admin.close()
        async with asyncio.timeout(30):
            while not all(driver.is_closed() for driver in drivers if driver is not None):
                await asyncio.sleep(0.01)
        async with database.read() as one, database.write() as other:
            new = {await _pid(one), await _pid(other)}
        assert len(new) == 2
        assert not new & closed
