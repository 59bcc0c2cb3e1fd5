"""The embedded PostgreSQL: for tests and benchmarks, as durable as one in production.

It needs no Docker and works as root as well as for an ordinary user. It is no part of the
embedded stack.
"""

import asyncio
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from keek_server.embedded import procfs
from keek_server.embedded.logs import new_log
from keek_server.embedded.ports import HOST, free_port
from keek_server.embedded.postgres_cluster import DATABASE, ROLE, PostgresCluster, make_cluster
from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.service import Command
from keek_server.errors import SetupError

_MARK_BYTES = 8
_PROBE_TIMEOUT_S = 2.0
_MAX_CONNECTIONS = 50


class EmbeddedPostgres:
    """A `Service` that runs PostgreSQL on 127.0.0.1. What is committed survives its restarts."""

    name = "postgres"
    stop_grace_s = 10.0

    def __init__(self, cluster: PostgresCluster, *, mark: str, shared_buffers_mib: int = 64) -> None:
        """Finds a port.

        Args:
            cluster: What `make_cluster` made; one server at a time.
            mark: The random mark that the `SupervisedProcess` is given, too.
            shared_buffers_mib: PostgreSQL's own cache, in MiB.
        """
        self._cluster = cluster
        self._mark = mark
        self._shared_buffers_mib = shared_buffers_mib
        self.port = free_port()

    @property
    def url(self) -> str:
        """For SQLAlchemy: the database `keek`."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """For SQLAlchemy: a database of this server."""
        return f"postgresql+asyncpg://{ROLE}:{self._cluster.password}@{HOST}:{self.port}/{database}"

    def choose_port(self) -> None:
        """Takes another port."""
        self.port = free_port()

    def command(self) -> Command:
        """Loopback clients only; whatever bears on durability is as PostgreSQL has it."""
        options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(_MAX_CONNECTIONS),
            "shared_buffers": f"{self._shared_buffers_mib}MB",
            # In the data directory, so that a killed server leaves nothing in /dev/shm.
            "dynamic_shared_memory_type": "mmap",
            # Stands in the process titles, which are written over the environment and its mark.
            "cluster_name": f"{procfs.MARK}={self._mark}-{self.name}",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return Command(
            [str(self._cluster.programs / "postgres"), "-D", str(self._cluster.data), *settings],
            user=self._cluster.user,
            # Ends the sessions. SIGTERM would wait until every client has gone by itself.
            stop_signal=signal.SIGINT,
        )

    async def connect(self, database: str = DATABASE, *, timeout_s: float = 10.0) -> asyncpg.Connection:
        """A connection without SQLAlchemy, to be closed by the caller.

        Raises:
            asyncpg.PostgresError: the server refuses.
            OSError: it does not answer, or not in time.
        """
        return await asyncpg.connect(
            host=HOST,
            port=self.port,
            user=ROLE,
            password=self._cluster.password,
            database=database,
            ssl=False,
            timeout=timeout_s,
        )

    async def ready(self, pid: int) -> bool:
        """Whether the server on the port answers, and is this process."""
        if not self._owns_data(pid):
            return False
        try:
            connection = await self.connect(timeout_s=_PROBE_TIMEOUT_S)
            await connection.close(timeout=_PROBE_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return False
        return True

    def healthy(self, pid: int) -> bool:
        """Always: its death is the only way it is known to fail."""
        return True

    def clean(self) -> None:
        """Leaves all as it is: from the data, the next process recovers what was committed.

        It also takes over the dead one's shared memory, which `postmaster.pid` names. Only when
        there is no next one do its 56 bytes stay until the machine restarts.
        """

    def _owns_data(self, pid: int) -> bool:
        """Whether this process has locked the data directory and says that it is ready.

        The role's password is for this data directory alone: a server that then lets us in is
        this one.
        """
        try:
            lines = (self._cluster.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        # Its first line is the pid, its eighth the state.
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


@asynccontextmanager
async def running_postgres(
    directory: Path | None = None, *, shared_buffers_mib: int = 64, ready_timeout_s: float = 60.0
) -> AsyncIterator[SupervisedProcess[EmbeddedPostgres]]:
    """A PostgreSQL that runs, and is restarted when it dies, until the block is left.

    ```
    async with running_postgres() as postgres:
        engine = create_async_engine(postgres.service.url)
    ```

    Args:
        directory: Its own, empty or new; for root, one that every user can reach, and not
            pytest's `tmp_path`. It stays. None takes a temporary one, which does not.
        shared_buffers_mib: PostgreSQL's own cache, in MiB.
        ready_timeout_s: How long it may take to become ready, once its data directory is made.

    Raises:
        SetupError: it cannot be set up or started. Nothing is left running then.
    """
    if sys.platform != "linux":
        raise SetupError("the embedded PostgreSQL needs Linux")
    async with AsyncExitStack() as resources:
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="keek-postgres-")
            directory = Path(resources.enter_context(temporary))
        cluster, mark = await _make_cluster(directory), secrets.token_hex(_MARK_BYTES)
        process = SupervisedProcess(
            EmbeddedPostgres(cluster, mark=mark, shared_buffers_mib=shared_buffers_mib),
            mark=mark,
            log_path=new_log(directory / "postgres.log"),
            ready_timeout_s=ready_timeout_s,
        )
        resources.push_async_callback(process.stop)
        await process.start()
        yield process


async def _make_cluster(directory: Path) -> PostgresCluster:
    """Off the event loop; also when cancelled, it ends only once nothing works in the directory."""
    making = asyncio.create_task(asyncio.to_thread(make_cluster, directory))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making])
        raise
