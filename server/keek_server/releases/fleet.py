"""The fleet: which servers live, and what each of them runs."""

import asyncio
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.releases.plan import Plan
from keek_server.storage.database import Database
from keek_server.storage.tables import servers

_SETTLED_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Figures:
    """What one server measured of one release lately."""

    feed_count: int = 0
    error_count: int = 0
    """Feeds whose personalised videos failed."""
    empty_count: int = 0
    """Feeds without any, for users with a history."""
    compared_count: int = 0
    """Shadowed feeds that were compared with what was shown."""
    mean_overlap: float = 0.0
    """Mean share of the shown personalised videos that they hold as well."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What one server says of itself."""

    server_id: str
    name: str
    start_time_us: int
    heartbeat_time_us: int
    plan_seq: int
    """The last plan that it carried out; 0 before the first."""
    release_id: str = ""
    trial_release_id: str = ""
    held_release_ids: list[str] = field(default_factory=list)
    """All that it has open: their files and models must stay."""
    problem: str = ""
    """Why it does not carry out the newest plan."""
    figures: dict[str, Figures] = field(default_factory=dict)
    """By release."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A plan, and how far the fleet is with it."""

    plan: Plan
    servers: list[ServerStatus]
    """Those that live."""

    @property
    def pending(self) -> list[ServerStatus]:
        """Those that have not carried out the plan."""
        return [server for server in self.servers if server.plan_seq < self.plan.seq]

    @property
    def converged(self) -> bool:
        """Whether all have."""
        return not self.pending


class Fleet:
    """Reads and writes heartbeats. Times are the database's clients' own: keep their clocks together."""

    def __init__(self, database: Database, *, stale_s: float) -> None:
        """
        Args:
            database: Where they are.
            stale_s: After this long without a word, a server counts as gone.
        """
        self._database = database
        self._stale_us = int(stale_s * 1e6)

    async def beat(self, status: ServerStatus) -> None:
        """Says what a server runs, and forgets those that are long gone."""
        gone = servers.delete().where(servers.c.heartbeat_time_us < now_us() - 10 * self._stale_us)

        def work(connection: sa.Connection) -> None:
            connection.execute(self._database.upsert(servers).values(asdict(status)))
            connection.execute(gone)

        await self._database.transact(work)

    async def leave(self, server_id: str) -> None:
        """Says that a server stops."""
        async with self._database.write() as connection:
            await connection.execute(servers.delete().where(servers.c.server_id == server_id))

    async def living(self) -> list[ServerStatus]:
        """The servers that live, by name."""
        fresh = servers.c.heartbeat_time_us >= now_us() - self._stale_us
        query = sa.select(servers).where(fresh).order_by(servers.c.name, servers.c.server_id)
        async with self._database.read() as connection:
            return [_status(row) for row in (await connection.execute(query)).mappings()]

    async def settled(self, plan: Plan, *, wait_s: float) -> Rollout:
        """How far the fleet is with a plan: once all who live have carried it out, or after `wait_s`."""
        end = time.monotonic() + wait_s
        while True:
            rollout = Rollout(plan, await self.living())
            if rollout.converged or time.monotonic() >= end:
                return rollout
            await asyncio.sleep(_SETTLED_POLL_S)


def _status(row: Any) -> ServerStatus:
    figures = {release_id: Figures(**entry) for release_id, entry in row["figures"].items()}
    return ServerStatus(**{**row, "figures": figures})
