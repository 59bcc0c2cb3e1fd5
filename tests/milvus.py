"""Milvus Lite for tests: a real one of a test's own, in a folder that goes."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from milvus_lite.adapter.grpc.server import start_server_in_thread
from milvus_lite.server_manager import server_manager_instance

from keek_server.retrieval.milvus_connection import Connection
from keek_server.retrieval.milvus_store import Milvus

DEADLINE_S = 60.0
"""Tests may share a small machine with much else."""


@contextmanager
def lite_path() -> Iterator[Path]:
    """The path of a Milvus Lite that the first client starts in this process."""
    with tempfile.TemporaryDirectory(prefix="keek-") as folder:
        path = Path(folder) / "milvus.db"
        try:
            yield path
        finally:
            server_manager_instance.release_server(str(path))


@contextmanager
def served_lite(path: Path, port: int = 0) -> Iterator[str]:
    """The URL of a server that runs in this process until the block ends; what it holds stays in the file."""
    server, database, port = start_server_in_thread(str(path), port=port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(grace=0).wait()
        database.close()


@contextmanager
def connected(url: str | Path, deadline_s: float = DEADLINE_S) -> Iterator[Milvus]:
    """A Milvus by its URL, or the path of its file."""
    with closing(Connection(str(url), deadline_s=deadline_s)) as connection:
        yield Milvus(connection, alias="keek_videos")
