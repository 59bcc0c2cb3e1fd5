"""Alembic's entry: runs the steps on the connection that `upgrade` gives it."""

from alembic import context

from keek_server.storage.tables import metadata

# The transaction is the caller's: all steps, or none.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
