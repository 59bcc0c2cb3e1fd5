"""What runs at present, as every feed asks it."""

import asyncio
import contextlib
import logging
from collections.abc import Collection
from typing import Protocol

from keek_server.errors import KeekError
from keek_server.experiments.assignment import Assignment, Plan, assign
from keek_server.experiments.registry import ExperimentRegistry
from keek_server.feed.types import FeedQuery

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the registry is asked: a change is everywhere within a second."""


class Pins(Protocol):
    """Keeps releases open that arms pin."""

    def pin(self, release_ids: Collection[str]) -> None:
        """From here on these, and no others."""
        ...


class LiveExperiments:
    """Follows the registry. A feed asks `assign` once, at its entry, and keeps what it got."""

    def __init__(
        self, registry: ExperimentRegistry, pins: Pins, *, holdout: float, poll_s: float = POLL_S
    ) -> None:
        """
        Args:
            registry: Says what runs.
            pins: Opens what arms pin.
            holdout: Share of all users that no experiment takes.
            poll_s: How often the registry is asked.
        """
        self._registry = registry
        self._pins = pins
        self._holdout = holdout
        self._poll_s = poll_s
        self._woken = asyncio.Event()
        self._plan = Plan()
        self._read: object = None

    def assign(self, query: FeedQuery) -> Assignment:
        """The arms of the user whose page it is."""
        return assign(self._plan, query.user_id, query.filter.languages, query.filter.regions)

    def notify(self) -> None:
        """Says that something may have changed."""
        self._woken.set()

    async def refresh(self) -> None:
        """Reads what runs.

        Raises:
            UnavailableError: When the database is down; what ran goes on.
        """
        running = [experiment.running for experiment in await self._registry.running()]
        if running != self._read:
            self._plan = Plan.of(running, holdout=self._holdout)
            self._read = running
            self._pins.pin(self._plan.release_ids)

    async def follow(self) -> None:
        """Keeps up with the registry, until cancelled."""
        failing = False
        while True:
            self._woken.clear()
            try:
                await self.refresh()
                failing = False
            except KeekError as error:
                if not failing:
                    logger.warning("experiments go on as they were: %s", error)
                failing = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()
