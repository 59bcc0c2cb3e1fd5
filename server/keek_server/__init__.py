"""The recommendation server."""
