"""Databases as earlier versions left them."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from keek_server.storage.migrate import MIGRATIONS


def to_step(connection: sa.Connection, revision: str) -> None:
    """Brings an empty database to an earlier step of its schema."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
