"""The parent of workers: what it loads, and the port that it keeps for them."""

import socket
import subprocess
import sys

import grpc
import pytest

from keek_server.errors import SetupError
from keek_server.port import reserved_port

LOADED = """
import sys
import keek_server.__main__ as main

sys.argv = ["keek-server", "serve", "--workers", "2"]
assert set(main._commands()) == {"serve", "up"}
heavy = {"grpc", "faiss", "numpy", "sqlalchemy", "redis", "tritonclient", "keek", "keek_server.app"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "keek_server.workers.supervisor" in sys.modules
"""


def test_the_parent_of_workers_loads_neither_grpc_nor_faiss() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "[::]"])
async def test_workers_share_the_port_and_nobody_else_gets_it(host: str) -> None:
    with reserved_port(f"{host}:0") as port:
        servers = [grpc.aio.server(options=[("grpc.so_reuseport", 1)]) for _ in range(2)]
        assert [server.add_insecure_port(f"{host}:{port}") for server in servers] == [port, port]
        alone = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        with pytest.raises(RuntimeError, match="Failed to bind"):
            alone.add_insecure_port(f"{host}:{port}")
        with pytest.raises(SetupError, match=rf"{port}.*KEEK_LISTEN"), reserved_port(f"{host}:{port}"):
            pass
        for server in servers:
            await server.stop(None)
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                stranger.bind(("127.0.0.1", port))


def test_a_port_that_a_server_has_is_refused_to_workers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(SetupError, match=r"in use.*KEEK_LISTEN"),
            reserved_port(f"127.0.0.1:{port}"),
        ):
            pass


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000", "no.such.host.invalid:1"]
)
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(SetupError, match="KEEK_LISTEN"), reserved_port(address):
        pass
