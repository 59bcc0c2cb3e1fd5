"""What feeds depend on, each behind a proxy, and what may happen to it."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from benchmarks.proxy import Proxy, running_proxy
from keek_server.embedded import EmbeddedStack, procfs
from keek_server.embedded.ports import HOST
from keek_server.embedded.postgres import EmbeddedPostgres
from keek_server.embedded.processes import SupervisedProcess
from keek_server.settings import Settings

_KILL_EVERY_S: Final = 0.02
_ADDRESS: Final = re.compile(rf"{re.escape(HOST)}:(\d+)")


class Fault(Enum):
    """What may happen."""

    KILLED = "killed"
    """With SIGKILL, and again whenever it has been restarted."""
    STALLED = "stalled"
    """By SIGSTOP, with all its processes: the kernel takes connections and bytes, nobody answers."""
    BLACKHOLED = "blackholed"
    """Nothing passes on the way to it, nor back."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """A server that feeds need."""

    name: str
    """triton, redis or sql."""
    said: str
    """What degradations call it."""
    process: SupervisedProcess[Any]
    proxy: Proxy

    @asynccontextmanager
    async def suffering(self, fault: Fault) -> AsyncIterator[None]:
        """Has it suffer a fault until the block is left. One that was killed may need a while after that."""
        match fault:
            case Fault.KILLED:
                killing = asyncio.create_task(self._keep_killed())
                try:
                    yield
                finally:
                    killing.cancel()
                    await asyncio.wait([killing])
            case Fault.STALLED:
                with _stopped(self.process.pid):
                    yield
            case Fault.BLACKHOLED:
                self.proxy.hold()
                try:
                    yield
                finally:
                    await self.proxy.pass_on()

    async def _keep_killed(self) -> None:
        while True:
            pid = self.process.pid
            # Only as a child of this process: a pid of one that is dead may become a stranger's.
            if pid in procfs.children(os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_KILL_EVERY_S)


@asynccontextmanager
async def proxied(
    settings: Settings, stack: EmbeddedStack, postgres: SupervisedProcess[EmbeddedPostgres] | None
) -> AsyncIterator[tuple[Settings, dict[str, Dependency]]]:
    """Proxies before the servers of a stack, and before PostgreSQL where there is one.

    Args:
        settings: Name them.
        stack: Runs Triton and Redis.
        postgres: None on SQLite, which nothing can be put before.

    Yields:
        The settings with the proxies' addresses, and the dependencies by name.
    """
    assert stack.triton is not None
    assert stack.redis is not None
    places: list[tuple[str, str, str, SupervisedProcess[Any]]] = [
        ("triton", "Triton", "triton_url", stack.triton),
        ("redis", "Redis", "redis_url", stack.redis),
    ]
    if postgres is not None:
        places.append(("sql", "the database", "database_url", postgres))
    async with AsyncExitStack() as resources:
        changes: dict[str, str] = {}
        dependencies: dict[str, Dependency] = {}
        for name, said, field, process in places:
            url = str(getattr(settings, field))
            address = _ADDRESS.search(url)
            assert address is not None, url
            proxy = await resources.enter_async_context(running_proxy(int(address[1])))
            changes[field] = url.replace(address[0], f"{HOST}:{proxy.port}")
            dependencies[name] = Dependency(name, said, process, proxy)
        yield settings.model_copy(update=changes), dependencies


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    stopped: set[int] = set()
    try:
        # Those that were started meanwhile are found in a further round.
        while new := _family(pid) - stopped:
            for each in new:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGSTOP)
            stopped |= new
        yield
    finally:
        for each in stopped:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def _family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    found = {pid}
    for child in procfs.children(pid):
        found |= _family(child)
    return found
