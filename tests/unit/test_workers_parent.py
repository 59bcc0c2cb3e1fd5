"""The parent of workers: what it loads, and the port that it keeps for them."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

import grpc
import pytest
from background import beside
from patience import eventually

from keek_server.errors import SetupError
from keek_server.port import reserved_port
from keek_server.settings import Settings
from keek_server.workers.supervisor import Supervisor

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


async def test_a_worker_that_cannot_be_started_again_at_once_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the machine is short of processes or memory for a moment."""
    failures = 0

    async def spawn(
        _arguments: Sequence[str], _variables: Mapping[str, str], _drop: Sequence[str], fds: Sequence[int]
    ) -> asyncio.subprocess.Process:
        nonlocal failures
        if failures:
            failures -= 1
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        ready = f"printf 1 >&{fds[0]}; exec {fds[0]}>&-; exec sleep 1000"
        return await asyncio.create_subprocess_exec("/bin/bash", "-c", ready, pass_fds=fds)

    monkeypatch.setattr("keek_server.workers.process.spawn", spawn)
    supervisor = Supervisor(Settings(listen="127.0.0.1:0", metrics_listen=None), 3)
    async with beside(supervisor.run()):
        await eventually(lambda: supervisor._count_serving() == 3)
        before = {number: worker.pid for number, worker in supervisor._workers.items()}
        failures = 2
        os.kill(before[1], signal.SIGKILL)
        await eventually(lambda: supervisor._workers[1].pid != before[1] and supervisor._count_serving() == 3)
        assert {number: supervisor._workers[number].pid for number in (2, 3)} == {2: before[2], 3: before[3]}
        # A restart that was asked for ends at once, and the old one goes on.
        failures = 1
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: not failures)
        await asyncio.sleep(0.1)
        assert supervisor._count_serving() == 3
        assert supervisor._workers[2].pid == before[2]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000", "no.such.host.invalid:1"]
)
def test_what_is_no_address_is_said(address: str) -> None:
    with pytest.raises(SetupError, match="KEEK_LISTEN"), reserved_port(address):
        pass
