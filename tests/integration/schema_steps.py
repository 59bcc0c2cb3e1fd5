"""Databases as earlier versions left them."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

from keek_server.settings import Settings
from keek_server.storage.migrate import MIGRATIONS


def to_step(connection: sa.Connection, revision: str) -> None:
    """Brings an empty database to an earlier step of its schema."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def leave_row(settings: Settings, revision: str, table: str, statement: str) -> None:
    """Makes a database at an earlier step, with a row of January 1970 in a partitioned table."""
    engine = create_async_engine(settings.database_url)
    async with engine.begin() as connection:
        await connection.run_sync(to_step, revision)
        if connection.dialect.name == "postgresql":
            bounds = "FOR VALUES FROM (0) TO (10)"
            await connection.execute(sa.text(f"CREATE TABLE {table}_1970_01 PARTITION OF {table} {bounds}"))
        await connection.execute(sa.text(statement))
    await engine.dispose()
