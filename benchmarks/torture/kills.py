"""Who is killed, and how they come back."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable
from typing import Any

from benchmarks.arena import Arena
from benchmarks.server_process import ServerProcess
from keek_server.embedded.processes import SupervisedProcess

_SEARCH_S = 2.0
_POLL_S = 0.1
_TWO_AT_ONCE = 0.25
_FREEZE_S = 1.7
"""Longer than the projection's lease: another has taken it over when the frozen one goes on."""


class Killer:
    """Takes random victims."""

    def __init__(self, arena: Arena, chance: random.Random) -> None:
        self._arena = arena
        self._chance = chance

    def choose(self, *, spare_redis: bool) -> list[str]:
        """One kind of victim, or two at once.

        "projector" is the server that holds the projection's lease, "freeze" means to stop that one
        for a while, "server" is the other one.
        """
        kinds = ["projector", "server", "freeze"]
        if not spare_redis:
            kinds.append("redis")
        if self._arena.postgres is not None:
            kinds.append("postgres")
        return self._chance.sample(kinds, 2 if self._chance.random() < _TWO_AT_ONCE else 1)

    async def strike(self, kinds: list[str]) -> list[str]:
        """Kills all at once with SIGKILL; Redis and PostgreSQL run again when it returns.

        Returns:
            Who was killed: "server" for "projector" while none is known to hold the lease.
        """
        projector, other = None, self._arena.servers[0]
        if set(kinds) - {"redis", "postgres"}:
            projector, other = await self._servers()
        if projector is None:
            kinds = list(dict.fromkeys("server" if kind == "projector" else kind for kind in kinds))
        await asyncio.gather(*(self._strike(kind, projector or other, other) for kind in kinds))
        return kinds

    def _strike(self, kind: str, projector: ServerProcess, other: ServerProcess) -> Awaitable[None]:
        match kind:
            case "projector":
                return projector.kill()
            case "freeze":
                return projector.freeze(_FREEZE_S)
            case "redis":
                return _restart(self._arena.redis)
            case "postgres":
                assert self._arena.postgres is not None
                return _restart(self._arena.postgres)
            case _:
                return other.kill()

    async def _servers(self) -> tuple[ServerProcess | None, ServerProcess]:
        """The server that holds the lease, and one that does not."""
        servers = self._arena.servers
        deadline = time.monotonic() + _SEARCH_S
        while time.monotonic() < deadline:
            found = await asyncio.gather(*(server.projects() for server in servers))
            if any(found):
                return servers[found.index(True)], servers[not found.index(True)]
            await asyncio.sleep(_POLL_S)
        return None, self._chance.choice(servers)


async def _restart(process: SupervisedProcess[Any]) -> None:
    """Killed, and up again at once.

    Its supervisor alone would wait longer after each of many deaths, up to five seconds.
    """
    os.kill(process.pid, signal.SIGKILL)
    await process.stop()
    await process.start()
