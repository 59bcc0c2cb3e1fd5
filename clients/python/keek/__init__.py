"""Keek: the client."""
