"""The asyncio client: its connection, and its calls by service."""
