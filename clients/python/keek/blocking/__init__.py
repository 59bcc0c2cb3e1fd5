"""The blocking client: its connection, and its calls by service."""
