"""Changes of the plan: made, announced, and waited for until the fleet has carried them out."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import dataclass, replace
from typing import Protocol

from keek_server.errors import KeekError, UnavailableError
from keek_server.releases.fleet import Fleet, Rollout
from keek_server.releases.plan import Plan, Trial
from keek_server.releases.registry import ReleaseRegistry
from keek_server.videos.slots import Slots

logger = logging.getLogger(__name__)


class Announcer(Protocol):
    """Tells the servers that the plan has changed."""

    async def announce(self) -> None:
        """May fail with a KeekError: servers that hear nothing look by themselves."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What goes with every change."""

    reason: str = ""
    """For the history."""
    request_id: uuid.UUID | None = None
    """Of the call: repeated, it changes nothing more, and waits again."""
    wait_s: float = 30.0
    """How long to wait for the fleet."""


class Rollouts:
    """Changes the plan, and says how far the fleet is with it."""

    def __init__(self, registry: ReleaseRegistry, fleet: Fleet, announcer: Announcer) -> None:
        self._registry = registry
        self._fleet = fleet
        self._announcer = announcer

    async def activate(self, release_id: str, wish: Wish) -> Rollout:
        """Everyone gets a release; see `ReleaseRegistry.activate`, also for what is raised."""
        return await self._settled(
            self._registry.activate(release_id, wish.reason, request_id=wish.request_id), wish
        )

    async def roll_back(self, wish: Wish) -> Rollout:
        """Back to the release before; see `ReleaseRegistry.roll_back`."""
        return await self._settled(self._registry.roll_back(wish.reason, request_id=wish.request_id), wish)

    async def start_trial(self, trial: Trial, wish: Wish) -> Rollout:
        """Tries a release beside the active one; see `ReleaseRegistry.start_trial`."""
        return await self._settled(
            self._registry.start_trial(trial, wish.reason, request_id=wish.request_id), wish
        )

    async def end_trial(self, wish: Wish) -> Rollout:
        """Everyone gets the active release; see `ReleaseRegistry.end_trial`."""
        return await self._settled(self._registry.end_trial(wish.reason, request_id=wish.request_id), wish)

    async def current(self) -> Rollout | None:
        """The newest plan, and the fleet at present; None before the first activation."""
        plan = await self._registry.plan()
        return None if plan is None else Rollout(plan, await self._fleet.living())

    async def _settled(self, change: Awaitable[Plan], wish: Wish) -> Rollout:
        end = time.monotonic() + wish.wait_s
        plan = await change
        try:
            await self._announcer.announce()
        except KeekError as error:
            logger.warning("plan %d is not announced, servers find it by themselves: %s", plan.seq, error)
        return await self._fleet.settled(plan, wait_s=max(0.0, end - time.monotonic()))


class RolloutWatch:
    """Tells of the plan and the fleet whenever either changes: one reader, however many watch."""

    def __init__(
        self, read: Callable[[], Awaitable[Rollout | None]], slots: Slots, *, poll_s: float = 0.25
    ) -> None:
        """
        Args:
            read: Gives the present state, as `Rollouts.current`.
            slots: The places for those who watch.
            poll_s: How old a state may be that is told.
        """
        self._read = read
        self._slots = slots
        self._poll_s = poll_s
        self._reading = asyncio.Lock()
        self._latest: Rollout | None = None
        self._read_at = -float("inf")

    async def follow(self) -> AsyncGenerator[Rollout | None, None]:
        """The state, at once and after every change, until closed; None before the first activation.

        That a server says again what it said before is no change.

        Raises:
            OverloadedError: When too many watch already.
            UnavailableError: When the state cannot be read at the start; later it stands still.
        """
        with self._slots.take():
            now = await self._state()
            while True:
                told = now
                yield told
                while _essence(now) == _essence(told):
                    await asyncio.sleep(self._poll_s)
                    now = await self._state_or(now)

    async def _state(self) -> Rollout | None:
        async with self._reading:
            if time.monotonic() - self._read_at >= self._poll_s:
                self._latest = await self._read()
                self._read_at = time.monotonic()
            return self._latest

    async def _state_or(self, before: Rollout | None) -> Rollout | None:
        try:
            return await self._state()
        except UnavailableError as error:
            logger.debug("the plan and the fleet are not read: %s", error)
            return before


def _essence(rollout: Rollout | None) -> Hashable:
    """What makes two states differ for those who watch."""
    if rollout is None:
        return None
    return repr((rollout.plan, [replace(server, heartbeat_time_us=0) for server in rollout.servers]))
