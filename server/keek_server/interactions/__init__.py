"""The durable log of interactions and its projection to Redis."""
