"""The schema's history: one file a step, run by Alembic when a database is opened."""
