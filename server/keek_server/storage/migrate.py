"""Brings a database's schema up to date."""

from pathlib import Path

import sqlalchemy as sa

from keek_server.errors import SetupError

MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(connection: sa.Connection) -> None:
    """Runs the steps that this database has not seen, in the caller's transaction.

    Raises:
        SetupError: When the schema is newer than this program, or older than its migrations.
    """
    # Imported here: it costs a light command more than all the rest.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    inspector = sa.inspect(connection)
    if inspector.has_table("interactions") and not inspector.has_table("alembic_version"):
        raise SetupError("its tables are of a version before the first release; start with an empty database")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SetupError(f"its schema is not one that this version of Keek knows: {error}") from error
